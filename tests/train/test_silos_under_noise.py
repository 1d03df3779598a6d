"""A silo's units where `[privacy]` is on: what leaves is noised, paid for, and given once."""

import numpy as np
import pytest
import torch
from support.silos import by_kind, private_run

from smalltalk_fed.errors import Refused
from smalltalk_fed.mixture.silo_prices import WITHHELD, withhold
from smalltalk_fed.train.private_em import run_private_em
from smalltalk_fed.train.private_units import COUNTS, STEPS
from smalltalk_fed.train.silo import build_silo_router, count_wins, silo_block
from smalltalk_fed.train.silo_counts import silo_counts, silo_releases


@pytest.fixture(scope="module")
def silos(corpus):
    return by_kind(corpus)  # 48 training and 10 held-out sequences each


@pytest.fixture(scope="module")
def manifest():
    """Rounds of 20 sequences, in blocks of two and one: 5 and 3 steps of 8."""
    return private_run(2, privacy={"router_noise": 1.0, "count_noise": 2.0})


@pytest.fixture(scope="module")
def routers(manifest, silos):
    return [silo_block(manifest, k, silos[k], 1, {}).parameters[k] for k in (0, 1)]


def test_a_block_is_noised_and_given_once(manifest, silos, tmp_path):
    def block(**options):
        return silo_block(manifest, 1, silos[1], 1, {}, **options)

    first = block(releases=silo_releases(manifest, 1, silos[1], tmp_path))
    ledger = silo_releases(manifest, 1, silos[1], tmp_path)
    assert block(releases=ledger) == first
    assert ledger.spent(STEPS) == first.figures["steps"] == 5
    assert block().parameters != first.parameters
    assert list(first.parameters) == [1]
    assert 0 < first.figures["epsilon"] < 100
    assert not any("loss" in name for name in first.figures)


def test_a_block_goes_on_from_the_router_of_the_block_before(silos, routers):
    """So slowly that what it began with is to be seen under the noise."""
    optimizer = {"learning_rate": 1e-7, "schedule": "constant"}
    slow = private_run(
        2, privacy={"router_noise": 1.0, "count_noise": 2.0}, router={"optimizer": optimizer}
    )
    after = silo_block(slow, 0, silos[0], 2, {0: routers[0]}).parameters[0]
    start, end, fresh = (build_silo_router(slow, 0, data) for data in (routers[0], after, None))
    assert torch.dist(start.lm_head.weight, fresh.lm_head.weight) > 0.1
    assert 0 < torch.dist(start.lm_head.weight, end.lm_head.weight) < 1e-3


def test_counts_are_noised_rounded_and_paid_for(manifest, silos, routers, tmp_path):
    ledger = silo_releases(manifest, 0, silos[0], tmp_path)
    exact = count_wins(manifest, silos[0], routers, [0.0, 0.0])
    seen = set()
    for block, index in ((1, 0), (2, 0), (2, 1)):
        asked = (manifest, 0, silos[0], block, index, routers, [0.0, 0.0])
        row, figures = silo_counts(*asked, releases=ledger)
        assert silo_counts(*asked, releases=ledger)[0].tolist() == row.tolist()
        assert silo_counts(*asked)[1] == figures  # as a run without repetitions costs
        shown = row[row != WITHHELD]
        assert (shown % 2 == 0).all()
        assert np.abs(shown - exact[row != WITHHELD].astype(float)).max(initial=0) < 20
        seen |= {tuple(silo_counts(*asked)[0]) for _ in range(6)}
    assert len(seen) > 2
    assert ledger.spent(COUNTS) == 3
    with pytest.raises(Refused, match="3 of the 3"):
        silo_counts(manifest, 0, silos[0], 2, 2, routers, [0.0, 0.0], releases=ledger)


def test_without_noise_a_row_is_of_the_exact_counts_and_nothing_is_noted(silos, routers):
    """Rounded and withheld all the same."""
    plain, all_of_it = private_run(2, private={"count_floor": 4}), [-1e9, 0.0]
    assert count_wins(plain, silos[0], routers, all_of_it).tolist() == [10, 0]
    row, figures = silo_counts(plain, 0, silos[0], 1, 0, routers, all_of_it)
    assert row.tolist() == withhold(np.array([10, 0]), 4).tolist() == [8, WITHHELD]
    assert figures == {}


def test_a_whole_run_under_noise_ends(manifest, silos):
    oracle = run_private_em(manifest, silos)
    assert len(oracle.routers) == 2
    assert [(each.block, each.index) for each in oracle.exchanges] == [(1, 0), (2, 0), (2, 1)]
    assert np.isfinite(oracle.prices_E).all()
    assert run_private_em(manifest, silos).routers != oracle.routers
