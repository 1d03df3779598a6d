"""Greedy assignment equals the plain loop over the sequences, ties included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.mixture.assignment import assign, equal_capacity, weighted_capacity


def plain_paper_key(scores, row, usable):
    return max(scores[row][e] for e in usable)


def plain_regret_key(scores, row, usable):
    best, *rest = sorted((float(scores[row][e]) for e in usable), reverse=True)
    return best - rest[0] if rest else 0.0


def plain_greedy(scores, capacity, key):
    """The naive twin: visit by descending key, each to its best expert with room."""
    usable = [e for e in range(len(capacity)) if capacity[e] > 0]
    room, expert_N = list(capacity), [-1] * len(scores)
    for row in sorted(range(len(scores)), key=lambda row: (-key(scores, row, usable), row)):
        best = min((e for e in usable if room[e] > 0), key=lambda e: (-scores[row][e], e))
        expert_N[row] = best
        room[best] -= 1
    return expert_N


@st.composite
def problems(draw):
    n, experts = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    number = draw(st.sampled_from([st.integers(-2, 2), st.floats(-900, -800, width=32)]))
    numbers = draw(st.lists(number, min_size=n * experts, max_size=n * experts))
    weights = draw(st.lists(st.integers(0, 3), min_size=experts, max_size=experts))
    capacity = weighted_capacity(n, weights) if any(weights) else equal_capacity(n, experts)
    return np.array(numbers, np.float32).reshape(n, experts), capacity


METHODS = [("paper", plain_paper_key), ("regret", plain_regret_key)]


@pytest.mark.parametrize(("method", "key"), METHODS)
@given(problem=problems())
def test_it_equals_the_plain_loop(method, key, problem):
    scores, capacity = problem
    assignment = assign(scores, capacity, method)
    assert assignment.expert_N.dtype == np.int32
    assert assignment.expert_N.tolist() == plain_greedy(scores, capacity, key)
    assert assignment.stats.load == tuple(capacity)
    assert not assignment.prices_E.any()


@pytest.mark.parametrize(("method", "key"), METHODS)
def test_blocks_do_not_show(method, key):
    rng = np.random.default_rng(0)
    scores = rng.normal((3, 1, 0, 0, -1), size=(40_000, 5)).astype(np.float32)
    capacity = equal_capacity(40_000, 5)
    assert assign(scores, capacity, method).expert_N.tolist() == plain_greedy(scores, capacity, key)


def test_paper_visits_the_likeliest_text_first():
    """Row 1 has the highest score of all and takes expert 0; row 0, who would lose more, waits."""
    scores = np.array([[-10, -90], [-1, -2]], np.float32)
    assert assign(scores, [1, 1], "paper").expert_N.tolist() == [1, 0]
    assert assign(scores, [1, 1], "regret").expert_N.tolist() == [0, 1]
    assert assign(scores, [1, 1], "optimal").expert_N.tolist() == [0, 1]


def test_regret_is_worked_out_once():
    """When expert 0 has closed, row 2 (regret 5, then 1) still goes before row 3 (regret 4)."""
    scores = np.array([[90, 0, 0], [80, 0, 0], [15, 10, 9], [0, 14, 10]], np.float32)
    assert assign(scores, [2, 1, 1], "regret").expert_N.tolist() == [0, 0, 1, 2]


def test_excess_shrinks_from_paper_to_regret_to_optimal():
    rng = np.random.default_rng(1)
    scores = (
        rng.normal(size=(4000, 8)) * 3 + rng.normal(size=8) * 2 + rng.normal(size=(4000, 1)) * 60
    )
    excess = [
        assign(scores.astype(np.float32), equal_capacity(4000, 8), method).stats.excess_nats
        for method in ("paper", "regret", "optimal")
    ]
    assert excess[0] > excess[1] > excess[2] > 0
