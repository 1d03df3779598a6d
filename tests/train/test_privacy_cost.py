"""Epsilon: against closed forms, against a second accountant, and as it must move."""

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from smalltalk_fed.config.privacy import PrivacySection
from smalltalk_fed.errors import UserError
from smalltalk_fed.train.privacy_cost import (
    batch_rate,
    counts_spent,
    private_steps,
    routers_spent,
)


def spent(noise=1.0, batch=32, sequences=2000, steps=480):
    return routers_spent(PrivacySection(router_noise=noise), batch, sequences, steps)


@pytest.mark.parametrize(("deviation", "rows"), [(10.0, 13), (2.0, 1), (50.0, 100)])
def test_rows_of_counts_cost_what_gaussian_mechanisms_cost(deviation, rows):
    privacy = PrivacySection(count_noise=deviation)
    found = counts_spent(privacy, 500, rows)
    rho = rows / (2 * deviation**2)  # Bun and Steinke 2016: zCDP adds up, and gives epsilon
    bound = rho + 2 * math.sqrt(rho * math.log(1 / found.delta))
    assert 0.5 * bound < found.epsilon <= bound * 1.01
    assert found.delta == privacy.delta_for(500)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_a_second_accountant_finds_a_little_less(noise):
    found = spent(noise)
    other = PRVAccountant()
    other.history = [(noise, 32 / 2000, 480)]
    tighter = other.get_epsilon(delta=found.delta)
    assert tighter < found.epsilon < 1.35 * tighter


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 20.0), st.integers(1, 200), st.integers(200, 10_000), st.integers(1, 2000))
def test_more_steps_or_less_noise_cost_more(noise, batch, sequences, steps):
    found = spent(noise, batch, sequences, steps).epsilon
    assert 0 <= found < math.inf
    assert spent(noise, batch, sequences, steps + 10).epsilon >= found
    assert spent(noise * 1.5, batch, sequences, steps).epsilon <= found * (1 + 1e-9)


def test_nothing_given_is_nothing_spent():
    assert spent(steps=0).epsilon == 0
    assert counts_spent(PrivacySection(), 100, 0).epsilon == 0


def test_a_batch_may_be_all_of_the_silo():
    assert batch_rate(PrivacySection(expected_batch=500), 32, 100) == 1.0
    assert batch_rate(PrivacySection(), 32, 128) == 0.25
    whole = routers_spent(PrivacySection(router_noise=4.0, expected_batch=500), 32, 100, 10)
    assert whole.epsilon > spent(4.0, 50, 100, 10).epsilon


def test_steps_look_at_the_sequences_once_on_average():
    assert private_steps(PrivacySection(), 32, 640) == 20
    assert private_steps(PrivacySection(), 32, 641) == 21
    assert private_steps(PrivacySection(expected_batch=1000), 32, 640) == 1


def test_without_opacus_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    with pytest.raises(UserError, match=r"smalltalk-fed\[privacy\]"):
        spent()
