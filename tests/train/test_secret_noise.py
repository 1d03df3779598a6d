"""Secret randomness: what it is distributed like, that it is nobody else's, and noised counts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from smalltalk_fed.train.secret_noise import SecretNoise, noised_counts

KEY = bytes(range(32))


def test_normal_numbers_are_normal_and_independent():
    drawn = SecretNoise(KEY).normal((400, 251)).numpy().ravel()
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / math.sqrt(len(drawn))
    half = len(drawn) // 2  # the two halves come from the same pairs of uniform numbers
    assert abs(np.corrcoef(drawn[:half], drawn[half : 2 * half])[0, 1]) < 4 / math.sqrt(half)


def test_uniform_numbers_are_uniform_and_never_nought():
    drawn = SecretNoise(KEY).uniform(100_000)
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert drawn.min() > 0
    assert drawn.max() <= 1


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
def test_each_thing_is_drawn_by_itself(rate):
    noise = SecretNoise(KEY)
    sizes = [len(noise.chosen(200, rate)) for _ in range(2000)]
    assert abs(np.mean(sizes) - 200 * rate) <= 4 * math.sqrt(200 * rate * (1 - rate) / 2000)
    expected = 200 * rate * (1 - rate)
    assert np.var(sizes) == pytest.approx(expected, rel=0.15, abs=1e-12)


def test_what_is_drawn_is_ascending_and_there_once():
    chosen = SecretNoise(KEY).chosen(1000, 0.3)
    assert np.all(np.diff(chosen) > 0)
    assert 0 <= chosen[0] <= chosen[-1] < 1000


def test_nothing_that_others_know_gives_the_noise():
    torch.manual_seed(7)
    np.random.seed(7)
    first = SecretNoise().normal((8,))
    torch.manual_seed(7)
    np.random.seed(7)
    assert not torch.equal(first, SecretNoise().normal((8,)))


def test_the_stream_does_not_depend_on_how_it_is_asked_for():
    whole, parts = SecretNoise(KEY), SecretNoise(KEY)
    assert np.array_equal(
        whole.uniform(5000), np.concatenate([parts.uniform(n) for n in (1, 17, 982, 4000)])
    )
    assert not np.array_equal(whole.uniform(8), parts.uniform(16)[8:])  # given out once


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    st.floats(0.01, 1e6),
    st.binary(min_size=32, max_size=32),
)
def test_noised_counts_are_whole_numbers_near_the_counts(counts, deviation, key):
    counts_E = np.array(counts)
    noised_E = noised_counts(counts_E, deviation, SecretNoise(key))
    assert noised_E.dtype == np.int64
    assert noised_E.min() >= 0
    assert np.all(np.abs(noised_E - counts_E) <= 9 * deviation + 1)


def test_the_noise_on_counts_has_the_deviation_asked_for():
    counts_E = np.full(20_000, 1000)
    noised_E = noised_counts(counts_E, 10.0, SecretNoise(KEY))
    assert (noised_E - 1000).std() == pytest.approx(10.0, rel=0.02)
    assert abs((noised_E - 1000).mean()) < 0.3
    with pytest.raises(ValueError, match="above 0"):
        noised_counts(counts_E, 0.0, SecretNoise(KEY))
