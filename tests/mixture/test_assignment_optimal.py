"""The optimal assignment: exact, certified by its prices, and the same wherever it starts."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from smalltalk_fed.mixture import prices, transport
from smalltalk_fed.mixture.assignment import assign, equal_capacity, weighted_capacity


def exact_total(scores, capacity):
    """The naive twin: scipy's, with a column for every place at an expert."""
    columns = np.repeat(np.arange(len(capacity)), capacity)
    rows, places = linear_sum_assignment(scores[:, columns].astype(np.float64), maximize=True)
    return scores[rows, columns[places]].astype(np.float64).sum()


def total(scores, assignment):
    return scores[np.arange(len(scores)), assignment.expert_N].astype(np.float64).sum()


def check_certificate(scores, capacity, assignment):
    """The dual's value equals the total score: nothing can be better (strong duality)."""
    assert np.bincount(assignment.expert_N, minlength=len(capacity)).tolist() == capacity.tolist()
    value = scores.astype(np.float64) - assignment.prices_E
    dual = value.max(axis=1).sum() + (capacity * assignment.prices_E).sum()
    assert total(scores, assignment) == pytest.approx(dual, rel=1e-12, abs=1e-9)
    assert assignment.prices_E.mean() == pytest.approx(0, abs=1e-9)


def skewed_scores(n, experts, seed, step=None, noise=3.0):
    """Domains of unequal size, that routers like to unequal degrees, on texts of all kinds."""
    rng = np.random.default_rng(seed)
    size = 1 / np.arange(1, 9)
    domain = rng.choice(8, size=n, p=size / size.sum())
    scores = (rng.normal(size=(8, experts)) * 4)[domain] + rng.normal(size=experts)
    scores += rng.normal(size=(n, experts)) * noise + rng.normal(size=(n, 1)) * 60 - 850
    return (np.round(scores / step) * step if step else scores).astype(np.float32)


@st.composite
def problems(draw):
    n, experts = draw(st.integers(1, 24)), draw(st.integers(1, 6))
    number = draw(
        st.sampled_from(
            [
                st.integers(-2, 2),  # ties everywhere
                st.floats(-900, -800, width=32),
                st.floats(-(2.0**90), 2.0**90, width=32),
            ]
        )
    )
    numbers = draw(st.lists(number, min_size=n * experts, max_size=n * experts))
    weights = draw(st.lists(st.integers(0, 3), min_size=experts, max_size=experts))
    capacity = weighted_capacity(n, weights) if any(weights) else equal_capacity(n, experts)
    return np.array(numbers, np.float32).reshape(n, experts), capacity


@given(problems())
@settings(max_examples=300)
def test_the_total_is_that_of_scipy(problem):
    scores, capacity = problem
    assignment = assign(scores, capacity)
    assert assignment.expert_N.dtype == np.int32
    assert assignment.stats.load == tuple(capacity)
    assert total(scores, assignment) == pytest.approx(exact_total(scores, capacity), rel=1e-9)


@given(problems())
def test_prices_give_the_assignment_again_up_to_ties(problem):
    scores, capacity = problem
    assignment = assign(scores, capacity)
    value = scores - assignment.prices_E
    lost = value.max(axis=1) - value[np.arange(len(scores)), assignment.expert_N]
    assert (lost <= 1e-9 * np.abs(scores).max()).all()


@given(problems(), st.integers(0, 2**32 - 1))
def test_the_answer_does_not_depend_on_where_the_search_begins(problem, seed):
    scores, capacity = problem
    expected = assign(scores, capacity)
    rng = np.random.default_rng(seed)

    def anywhere(scores_NxE, *_arguments):
        return rng.normal(size=scores_NxE.shape[1]) * np.abs(scores_NxE).max()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prices, "approach", anywhere)
        again = assign(scores, capacity)
    assert np.array_equal(again.expert_N, expected.expert_N)
    assert np.array_equal(again.prices_E, expected.prices_E)


@pytest.mark.parametrize("step", [None, 1 / 32, 4.0])
@pytest.mark.parametrize(("n", "experts"), [(1500, 5), (1200, 2), (900, 30)])
def test_it_is_exact_where_scipy_can_tell(n, experts, step):
    scores = skewed_scores(n, experts, seed=n, step=step)
    capacity = weighted_capacity(n, 1 + np.arange(experts) % 3)
    assert total(scores, assign(scores, capacity)) == pytest.approx(
        exact_total(scores, capacity), rel=1e-12
    )


@pytest.mark.parametrize("step", [None, 1 / 32, 16.0])
def test_its_prices_prove_it_for_many_rows(step):
    """More rows than the sample that prices are looked for in, and rows near ties within."""
    scores = skewed_scores(150_000, 8, seed=1, step=step)
    capacity = equal_capacity(150_000, 8)
    check_certificate(scores, capacity, assign(scores, capacity))


def test_rows_in_a_few_tight_clusters():
    """Cluster sizes in the sample differ from those of all rows, and prices with them."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(4, 8)) * 30
    scores = centre[rng.integers(0, 4, 100_000)] + rng.normal(size=(100_000, 8)) * 1e-3
    capacity = equal_capacity(100_000, 8)
    check_certificate(scores.astype(np.float32), capacity, assign(scores.astype("f4"), capacity))


@pytest.mark.parametrize("seed", [2, 3])
def test_when_rows_set_aside_matter_more_of_them_join(monkeypatch, seed):
    """From a bad start too few rows are taken for near a tie: the first certificate fails."""
    scores, capacity = skewed_scores(4000, 8, seed), equal_capacity(4000, 8)
    expected = assign(scores, capacity)
    attempts = []
    cheapest_moves = transport.cheapest_moves

    def counted(*arguments):
        attempts.append(len(arguments[0]))
        return cheapest_moves(*arguments)

    start = expected.prices_E + np.random.default_rng(seed).normal(size=8) * 0.05
    monkeypatch.setattr(prices, "approach", lambda *_: start)
    monkeypatch.setattr(transport, "_NEAR_PER_SURPLUS", 2)
    monkeypatch.setattr(transport, "cheapest_moves", counted)
    again = assign(scores, capacity)
    assert attempts.count(4000) == 2
    assert np.array_equal(again.expert_N, expected.expert_N)
    assert np.array_equal(again.prices_E, expected.prices_E)


def test_all_equal_rows_are_dealt_out_in_row_order():
    scores = np.full((10, 3), -850, np.float32)
    assignment = assign(scores, equal_capacity(10, 3))
    assert assignment.expert_N.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert assignment.prices_E.tolist() == [0, 0, 0]
    assert assignment.stats.excess_nats == 0
    assert assignment.stats.displaced_fraction == 0


def test_tied_rows_make_way_for_each_other():
    """Row 0 could sit at either expert, row 1 only at expert 0: dealing in order isn't enough."""
    scores = np.array([[5, 5, 0], [5, 0, 5], [5, 0, 0]], np.float32)
    assert assign(scores, equal_capacity(3, 3)).expert_N.tolist() == [1, 2, 0]


def test_a_closed_expert_gets_nothing_at_the_lowest_price_that_keeps_it_so():
    scores = np.array([[0, 9, 1], [0, 7, 3], [2, 9, 0], [4, 8, 0]], np.float32)
    assignment = assign(scores, [2, 0, 2])
    assert assignment.expert_N.tolist() == [2, 2, 0, 0]
    value = scores - assignment.prices_E
    assert value.argmax(axis=1).tolist().count(1) <= 1
    assert value[:, 1].max() <= value.max()
    check_certificate(scores, np.array([2, 0, 2]), assignment)


def test_memory_next_to_the_scores_is_small():
    scores = skewed_scores(200_000, 32, seed=0)
    capacity = equal_capacity(200_000, 32)
    tracemalloc.start()
    assign(scores, capacity)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 70e6
