"""Capacities, random shares, free routing, prices by counts, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.mixture.assignment import (
    assign,
    dual_ascent,
    equal_capacity,
    random_assignment,
    route,
    weighted_capacity,
)


def test_the_remainder_goes_to_the_lowest_ids():
    assert equal_capacity(10, 4).tolist() == [3, 3, 2, 2]
    assert equal_capacity(2, 4).tolist() == [1, 1, 0, 0]
    assert equal_capacity(0, 2).tolist() == [0, 0]
    assert equal_capacity(8, 4).dtype == np.int64


def test_weighted_shares_follow_the_largest_remainder():
    assert weighted_capacity(10, [1, 1, 1, 1]).tolist() == [3, 3, 2, 2]
    assert weighted_capacity(10, [3, 1]).tolist() == [8, 2]
    assert weighted_capacity(10, [1, 3]).tolist() == [3, 7]
    assert weighted_capacity(7, [0, 1, 0.5]).tolist() == [0, 5, 2]
    assert weighted_capacity(43_945 * 32, np.ones(32)).tolist() == [43_945] * 32


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_weighted_shares_sum_and_are_within_one(n, weights):
    if sum(weights) == 0:
        weights[0] = 1.0
    capacity = weighted_capacity(n, weights)
    exact = n * np.array(weights) / sum(weights)
    assert capacity.sum() == n
    assert (np.abs(capacity - exact) < 1 + 1e-6).all()


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [np.nan, 1], [np.inf, 1], [], [[1, 1]]])
def test_weights_that_share_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        weighted_capacity(5, weights)


def test_impossible_equal_shares_are_refused():
    for n, experts in [(-1, 2), (5, 0)]:
        with pytest.raises(ValueError, match="can't share"):
            equal_capacity(n, experts)


@given(st.integers(1, 300), st.integers(1, 8), st.binary(min_size=1, max_size=8))
def test_random_shares_are_exact(n, experts, key):
    capacity = equal_capacity(n, experts)
    expert_N = random_assignment(n, capacity, key)
    assert expert_N.dtype == np.int32
    assert np.bincount(expert_N, minlength=experts).tolist() == capacity.tolist()


def test_random_shares_depend_on_the_key_alone():
    one, again, other = (
        random_assignment(50, equal_capacity(50, 4), k) for k in (b"1", b"1", b"2")
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert random_assignment(12, equal_capacity(12, 3), b"golden").tolist() == [
        *(0, 1, 2, 2, 0, 0, 2, 1, 1, 0, 2, 1),
    ]


def test_random_shares_are_even_over_rows():
    half = sum(random_assignment(40, [20, 20], bytes([i])) for i in range(200))
    assert abs(half / 200 - 0.5).max() < 0.2


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_free_routing_is_the_argmax_of_score_minus_price(n, experts, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (n, experts)).astype(np.float32)
    prices = rng.integers(-1, 2, experts).astype(np.float64)
    for price in (None, prices):
        paid = [0.0] * experts if price is None else price
        plain = [max(range(experts), key=lambda e: (row[e] - paid[e], -e)) for row in scores]
        assert route(scores, price).tolist() == plain
    assert route(scores).dtype == np.int32


def test_routing_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="NaN"):
        route(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="2 experts need as many prices"):
        route(np.zeros((3, 2)), [1.0])
    with pytest.raises(ValueError, match="shape"):
        route(np.zeros(3))


def test_prices_rise_for_those_who_win_more_than_their_share():
    moved = dual_ascent([0.0, 1.0], [30, 10], [0.5, 0.5], step=2.0)
    assert moved.tolist() == [0.5, 0.5]
    assert dual_ascent([0.0, 1.0], [0, 0], [0.5, 0.5], step=2.0).tolist() == [0.0, 1.0]


def test_dual_ascent_on_counts_balances():
    rng = np.random.default_rng(0)
    scores = rng.normal((2, 0, 0, -1), size=(4000, 4))
    share, prices = np.array([0.4, 0.3, 0.2, 0.1]), np.zeros(4)
    for _ in range(300):
        counts = np.bincount(route(scores, prices), minlength=4)
        prices = dual_ascent(prices, counts, share, step=0.5)
    assert np.abs(counts / 4000 - share).max() < 0.005


def test_dual_ascent_refuses_mismatches():
    with pytest.raises(ValueError, match="one per expert"):
        dual_ascent([0.0], [1, 2], [0.5, 0.5], 1.0)
    with pytest.raises(ValueError, match="negative"):
        dual_ascent([0.0, 0.0], [1, -2], [0.5, 0.5], 1.0)


SCORES = np.zeros((4, 2), np.float32)


def scores_with(value):
    scores = SCORES.copy()
    scores[2, 1] = value
    return scores


@pytest.mark.parametrize("method", ["paper", "regret", "optimal"])
@pytest.mark.parametrize(
    ("scores", "capacity", "says"),
    [
        (SCORES, [2, 1], "sum to 3, but there are 4"),
        (SCORES, [2, 1, 1], "2 experts, but capacities 3"),
        (SCORES, [5, -1], "negative"),
        (SCORES, [2.0, 2.0], "whole number"),
        (SCORES, [[2, 2]], "whole number"),
        (SCORES.astype(np.float64), [2, 2], "float32"),
        (np.zeros((4, 0), np.float32), [], "float32"),
        (np.zeros(4, np.float32), [4], "float32"),
        (scores_with(np.nan), [2, 2], "expert 1's score of row 2 is nan"),
        (scores_with(np.inf), [2, 2], "expert 1's score of row 2 is inf"),
        (scores_with(-np.inf), [2, 2], "expert 1's score of row 2 is -inf"),
        (scores_with(2e30), [2, 2], "below 1e"),
    ],
)
def test_what_does_not_fit_together_is_refused(scores, capacity, says, method):
    with pytest.raises(ValueError, match=says):
        assign(scores, capacity, method)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="paper, regret, optimal, not 'best'"):
        assign(SCORES, [2, 2], "best")


@pytest.mark.parametrize("method", ["paper", "regret", "optimal"])
def test_nothing_to_assign(method):
    assignment = assign(np.zeros((0, 3), np.float32), [0, 0, 0], method)
    assert assignment.expert_N.size == 0
    assert assignment.stats.load == (0, 0, 0)
    assert assignment.stats.excess_nats == 0


@pytest.mark.parametrize("method", ["paper", "regret", "optimal"])
def test_any_memory_layout_will_do_and_nothing_is_written(method):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 3)).astype(np.float32)
    expected = assign(scores, [20, 30, 10], method).expert_N
    by_column = np.asfortranarray(scores)
    by_column.setflags(write=False)
    assert np.array_equal(assign(by_column, [20, 30, 10], method).expert_N, expected)


def test_stats_say_what_balancing_cost():
    scores = np.array([[3, 1], [5, 0], [2, 2], [0, 0]], np.float32)
    stats = assign(scores, [1, 3], "optimal").stats
    assert stats.load == (1, 3)
    assert stats.displaced_fraction == 1 / 4
    assert stats.excess_nats == 2 / 4
