"""When a checkpoint may be taken: by the clock, by what it costs, and once at the end."""

import pytest

from smalltalk_fed.train.budget import Budget, Cost


def _spent(budget, took_s, until, step=0.25):
    """Take every checkpoint that is due while the clock runs; return the seconds they took."""
    now, spent = 0.0, 0.0
    while now < until:
        if budget.due(now):
            now += took_s
            spent += took_s
            budget.took(Cost(took_s, took_s), now)
        now += step
    return spent


def test_the_interval_counts_from_the_end_of_the_last_one():
    budget = Budget(300.0, 0.02, Cost(1.0, 1.0), now=1000.0)
    assert not budget.due(1299.0)
    assert budget.due(1300.0)
    budget.took(Cost(1.0, 2.0), 1302.0)
    assert not budget.due(1601.0)
    assert budget.due(1602.0)


def test_one_that_costs_more_comes_more_rarely():
    budget = Budget(300.0, 0.02, Cost(1.0, 1.0), now=0.0)
    budget.took(Cost(10.0, 60.0), 300.0)
    assert not budget.due(799.0)
    assert budget.due(800.0)
    budget.took(Cost(1.0, 60.0), 860.0)  # cheaper again; waiting for the disk costs nothing
    assert budget.due(1160.0)


def test_a_first_one_waits_for_what_it_may_cost():
    budget = Budget(0.0, 0.02, Cost.guess(4_000_000_000), now=0.0)
    assert not budget.due(400.0)
    assert budget.due(600.0)


@pytest.mark.parametrize("share", [0.5, 0.02, 0.001])
@pytest.mark.parametrize("took_s", [0.01, 1.0, 30.0])
def test_all_together_stay_under_the_share(share, took_s):
    budget = Budget(1.0, share, Cost(took_s, took_s), now=0.0)
    spent = _spent(budget, took_s, until=100_000.0)
    assert took_s <= spent <= share * (100_000.0 + took_s)


def test_the_end_waits_only_for_what_the_share_still_allows():
    budget = Budget(300.0, 0.02, Cost(1.0, 4.0), now=0.0)
    assert not budget.worth_waiting(199.0)
    assert budget.worth_waiting(200.0)
    budget.took(Cost(2.0, 6.0), 300.0)
    assert not budget.worth_waiting(399.0)
    assert budget.worth_waiting(400.0)
