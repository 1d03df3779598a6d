"""A silo's units under noise: blocks that go on from each other, counts, costs that add up."""

import numpy as np
import pytest
import torch

from smalltalk_fed.config.privacy import PrivacySection
from smalltalk_fed.errors import Refused
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.privacy_cost import counts_spent, routers_spent
from smalltalk_fed.train.private_sgd import PrivatePlan, train_privately
from smalltalk_fed.train.private_units import (
    COUNTS,
    STEPS,
    private_block,
    private_counts,
    release_limits,
)
from smalltalk_fed.train.releases import Releases
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.secret_noise import SecretNoise, noised_counts
from smalltalk_fed.train.units import router_optimizer
from smalltalk_fed.wire.egress import figure_is_declared

KEY = bytes(range(32))
SEEN = (40, 40, 20)  # sequences that three blocks train on: 5, 5 and 3 steps of 8


@pytest.fixture
def manifest(make_run):
    return make_run(
        run={"regime": "private"},
        private={"price_rounds": 2},
        privacy={"router_noise": 1.0, "count_noise": 5.0},
    )


@pytest.fixture
def releases(manifest, tmp_path):
    return Releases(tmp_path / "releases", release_limits(manifest, SEEN))


def block(manifest, corpus, number, start=None, **options):
    model = build_router(manifest, 0, start)
    return private_block(manifest, 0, corpus.train, 96, model, number, SEEN, **options)


def test_limits_are_what_the_run_comes_to(manifest):
    assert release_limits(manifest, SEEN) == {STEPS: 13, COUNTS: 4}


def test_blocks_go_on_from_each_other_and_tell_what_was_spent(manifest, corpus, releases):
    start = None
    for number, steps in ((1, 5), (2, 10), (3, 13)):
        before, (start, figures) = start, block(manifest, corpus, number, start, releases=releases)
        assert start != before
        expected = routers_spent(manifest.config.privacy, 8, 96, steps)
        assert (figures["epsilon"], figures["delta"]) == (expected.epsilon, expected.delta)
    assert figures["steps"] == 3
    assert all(figure_is_declared(name) for name in figures)
    assert not any("loss" in name for name in figures)


@pytest.mark.parametrize(("expected", "batch", "steps"), [(0, 8, 5), (20, 20, 2)])
def test_noise_clip_and_batches_are_those_that_epsilon_is_told_for(
    make_run, corpus, expected, batch, steps
):
    privacy = {"router_noise": 1.5, "router_clip": 0.7, "expected_batch": expected}
    manifest = make_run(run={"regime": "private"}, privacy=privacy)
    data, figures = block(manifest, corpus, 1, noise=SecretNoise(KEY))
    by_hand, config = build_router(manifest, 0, None), manifest.config
    optimizer = router_optimizer(config.router.optimizer, steps)
    plan = PrivatePlan(optimizer, steps, batch, 8, noise=1.5, clip=0.7)
    train_privately(
        by_hand, corpus.train, 96, plan=plan, device=torch.device("cpu"), noise=SecretNoise(KEY)
    )
    assert data == state_to_bytes(by_hand)
    told = PrivacySection(router_noise=1.5)
    assert figures["epsilon"] == routers_spent(told, batch, 96, steps).epsilon


def test_the_noise_on_counts_is_what_epsilon_is_told_for(manifest):
    exact = np.array([500, 20])
    row, figures = private_counts(
        manifest, "count/0/1/0", 520, {}, lambda: exact, noise=SecretNoise(KEY)
    )
    assert row.tolist() == noised_counts(exact, 5.0, SecretNoise(KEY)).tolist()
    assert figures == counts_spent(PrivacySection(count_noise=5.0), 520, 1).figures


def test_a_block_that_is_asked_for_again_is_not_trained_again(manifest, corpus, releases):
    first, figures = block(manifest, corpus, 1, releases=releases)
    again, same = block(manifest, corpus, 1, releases=releases)
    assert (again, same) == (first, figures)
    assert block(manifest, corpus, 1)[0] != first  # without a ledger it would be
    assert releases.spent(STEPS) == 5


def test_a_silo_gives_no_more_than_the_run_comes_to(manifest, corpus, releases):
    first, _ = block(manifest, corpus, 1, releases=releases)
    second, _ = block(manifest, corpus, 1, first, releases=releases)  # of other parameters
    with pytest.raises(Refused, match="10 of the 13"):
        block(manifest, corpus, 1, second, releases=releases)


def test_a_stopped_block_goes_on_and_costs_once(manifest, corpus, releases, tmp_path):
    asked = []
    with pytest.raises(Stopped):
        block(
            manifest,
            corpus,
            1,
            releases=releases,
            work_folder=tmp_path / "work",
            should_stop=lambda: bool(asked.append(1)) or len(asked) == 2,
        )
    assert releases.spent(STEPS) == 0
    asked.clear()
    block(
        manifest,
        corpus,
        1,
        releases=releases,
        work_folder=tmp_path / "work",
        should_stop=lambda: bool(asked.append(1)),
    )
    assert len(asked) == 3
    assert releases.spent(STEPS) == 5


def test_counts_are_noised_once_for_each_question(manifest, releases):
    counted = []

    def count():
        counted.append(1)
        return np.array([500, 20])

    def ask(unit, prices, **options):
        inputs = {"prices": prices}
        return private_counts(manifest, unit, 520, inputs, count, **options)

    first, figures = ask("count/0/1/0", b"a", releases=releases)
    again, _ = ask("count/0/1/0", b"a", releases=releases)
    assert first.tolist() == again.tolist()
    assert len(counted) == 1
    assert np.abs(first - [500, 20]).max() < 50
    assert figures == counts_spent(manifest.config.privacy, 520, 1).figures
    _, figures = ask("count/0/2/0", b"b", releases=releases)
    assert figures == counts_spent(manifest.config.privacy, 520, 2).figures
    _, figures = ask("count/0/2/0", b"b", rows_before=1)  # as a ledger would say
    assert figures == counts_spent(manifest.config.privacy, 520, 2).figures
    rows = {tuple(ask("count/0/3/0", b"c")[0]) for _ in range(8)}
    assert len(rows) > 1


def test_a_count_that_was_answered_keeps_its_answer_when_a_router_has_left(manifest, releases):
    """Or the silo would pay for one more row than the run comes to, and refuse the last."""

    def ask(unit, **inputs):
        return private_counts(
            manifest, unit, 520, inputs, lambda: np.array([500, 20]), releases=releases
        )

    first, _ = ask("count/0/1/0", a=b"1", b=b"2")
    again, figures = ask("count/0/1/0", a=b"1")
    assert again.tolist() == first.tolist()
    assert releases.spent(COUNTS) == 1
    assert figures == counts_spent(manifest.config.privacy, 520, 1).figures


def test_the_blocks_parameters_are_a_routers(manifest, corpus):
    data, _ = block(manifest, corpus, 1)
    assert state_to_bytes(build_router(manifest, 0, data)) == data
