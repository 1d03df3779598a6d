"""The residual graph: what it keeps up to date equals what can be counted afresh."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.mixture.residual import Residual, cheapest_moves, shortest_distances


def plain_cost(scores, expert_N, a, b):
    """The naive twin: go through the rows of a."""
    moves = [row[a] - row[b] for row, e in zip(scores, expert_N, strict=True) if e == a]
    return min(moves, default=np.inf)


@given(st.integers(1, 12), st.integers(2, 5), st.data())
def test_costs_are_those_of_the_cheapest_rows(n, experts, data):
    scores = np.array(
        data.draw(st.lists(st.integers(-3, 3), min_size=n * experts, max_size=n * experts)),
        np.float32,
    ).reshape(n, experts)
    expert_N = np.array(data.draw(st.lists(st.integers(0, experts - 1), min_size=n, max_size=n)))
    cost = cheapest_moves(scores, 1.0, expert_N)
    for a in range(experts):
        for b in range(experts):
            assert cost[a, b] == (np.inf if a == b else plain_cost(scores, expert_N, a, b))


@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_after_balancing_costs_are_current_and_prices_hold(n, experts, spread, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-spread, spread + 1, (n, experts)).astype(np.float32)
    capacity = np.bincount(rng.integers(0, experts, n), minlength=experts)
    start = rng.integers(-5, 6, experts).astype(np.float64)
    residual = Residual(scores, 1.0, (scores - start).argmax(axis=1))
    price = residual.balance(capacity, start)
    expert_N = residual.assignment()
    assert np.bincount(expert_N, minlength=experts).tolist() == capacity.tolist()
    assert residual.load_E.tolist() == capacity.tolist()
    assert np.array_equal(residual.cost_ExE, cheapest_moves(scores, 1.0, expert_N))
    value = scores - price
    assert np.array_equal(value[np.arange(n), expert_N], value.max(axis=1))
    assert (np.diag(shortest_distances(residual.cost_ExE)) >= 0).all()


def test_what_could_be_improved_is_a_negative_cycle():
    scores = np.array([[0, 1], [1, 0]], np.float32)
    worst = cheapest_moves(scores, 1.0, np.array([0, 1]))
    best = cheapest_moves(scores, 1.0, np.array([1, 0]))
    assert np.diag(shortest_distances(worst)).min() < 0
    assert np.diag(shortest_distances(best)).min() == 0
