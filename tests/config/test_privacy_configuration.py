"""[privacy]: noise that would be no promise is refused in a sentence; delta follows the silo."""

import pytest

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.privacy import PrivacySection
from smalltalk_fed.errors import ConfigError


def configured(regime="private", experts=2, experts_of=(), **privacy):
    return parse_config(
        {
            "run": {"regime": regime, "experts": experts},
            "private": {"experts_of": list(experts_of)},
            "privacy": privacy,
        },
        "the test",
    )


def test_it_is_off_unless_asked_for():
    assert not configured().privacy.on
    assert not configured(regime="shared", router_clip=2.0).privacy.on
    assert configured(router_noise=1.0).privacy.on


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"router_noise": 0.1}, "promises nothing worth its cost"),
        ({"router_noise": 1.0, "regime": "shared"}, "regime 'shared' every node can read"),
        (
            {"router_noise": 1.0, "experts": 3, "experts_of": [1, 2]},
            "gives seat 1 2 experts; .* must be one a seat",
        ),
        ({"router_noise": -1.0}, "router_noise"),
        ({"router_noise": float("inf")}, "router_noise"),
        ({"router_clip": 0.0}, "router_clip"),
        ({"count_noise": 0.0}, "count_noise"),
        ({"delta": 0.7}, "delta"),
    ],
)
def test_noise_that_promises_nothing_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        configured(**changes)


def test_several_experts_a_seat_are_fine_without_noise():
    assert configured(experts=3, experts_of=[1, 2]).private.experts_of == [1, 2]


def test_delta_is_below_one_in_the_silos_sequences():
    section = PrivacySection()
    for sequences in (10, 1000, 10**9):
        assert 0 < section.delta_for(sequences) < 1 / sequences
    assert 0 < section.delta_for(1) <= 0.5
    assert PrivacySection(delta=1e-6).delta_for(10) == 1e-6
