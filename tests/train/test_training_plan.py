"""The rate's way over the steps, and the curve of losses."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.train.plan import Progress, curve_of, rate_at


def test_the_rate_warms_up_linearly_and_ends_at_the_final_fraction_of_its_peak():
    optimizer = Optimizer(learning_rate=1.0, warmup_steps=4, final_fraction=0.05)
    rates = [rate_at(step, 25, optimizer) for step in range(25)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.525)
    assert rates[24] == pytest.approx(0.05)


def test_a_constant_rate_stays_at_its_peak_after_warm_up():
    optimizer = Optimizer(learning_rate=0.5, schedule="constant", warmup_steps=1)
    assert [rate_at(step, 4, optimizer) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


@given(
    st.integers(1, 60), st.integers(0, 80), st.sampled_from(["cosine", "constant"]), st.floats(0, 1)
)
def test_the_rate_is_never_above_its_peak_nor_zero_while_it_warms_up(steps, warmup, kind, floor):
    optimizer = Optimizer(
        learning_rate=0.1, schedule=kind, warmup_steps=warmup, final_fraction=floor
    )
    rates = [rate_at(step, steps, optimizer) for step in range(steps)]
    assert all(0 <= rate <= 0.1 * (1 + 1e-12) for rate in rates)
    assert rates[0] > 0 or (steps == 1 and warmup == 0) or floor == 0
    assert all(a <= b for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates[warmup:]))


@given(st.lists(st.floats(0, 10), max_size=50), st.integers(1, 20))
def test_the_curves_points_are_means_that_cover_every_step_once(losses, points):
    curve = curve_of(losses, points)
    assert len(curve) == min(points, len(losses))
    steps = [0, *(step for step, _ in curve)]
    assert steps[-1] == len(losses)
    total = sum(
        loss * (stop - start)
        for start, stop, (_, loss) in zip(steps, steps[1:], curve, strict=False)
    )
    assert math.isclose(total, math.fsum(losses), abs_tol=1e-9)


def test_progress_is_a_fraction():
    assert Progress(3, 12, 1.0, 0.0).fraction == 0.25
    assert Progress(0, 0, 1.0, 0.0).fraction == 1.0
