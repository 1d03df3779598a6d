"""Prices near the optimum: Newton's method on a smoothed dual.

The dual of the transport problem is convex in the prices,
    D(p) = sum_x max_e (s_xe - p_e) + sum_e capacity_e p_e,
and its gradient is capacity minus load. Replacing the maximum by temperature times log-sum-exp
makes it smooth (entropic transport, Cuturi 2013); cooling from the spread of the scores down to
where few rows are undecided gives prices from which few moves remain.

These prices are a start for `transport`, which is exact from any start: nothing here decides an
assignment, so float32, a sample and a fixed number of steps are good enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.mixture.permutation import Permutation

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

_SAMPLE_KEY = b"smalltalk-fed prices sample 1"
_SAMPLE_ROWS = 1 << 16
_BLOCK = 1 << 12  # rows looked at at a time: temporaries stay in the cache
_COOLING = 4.0
_COLDEST_NATS = 1e-30  # float32 can't divide by much less
_NEWTON_STEPS = 20
_FAR_FROM_BASE = 256.0  # temperatures: beyond, float32 begins to show
_LARGEST_MOVE = 8.0  # temperatures: beyond, the quadratic model means nothing
_UNDECIDED_PER_EXPERT = 8  # rows within reach of a tie at which cooling has done its work


def approach(
    scores_NxE: NDArray[np.floating],
    capacity_E: NDArray[np.int64],
    price_E: Float64Array,
    load_E: NDArray[np.int64] | None = None,
    heat_nats: float | None = None,
) -> Float64Array:
    """Return prices under which the loads are nearly the capacities, float64[E] in nats.

    Starts from `price_E` and a temperature of `heat_nats`, by default the mean distance of a
    row's scores from its best. `load_E` are the loads of all rows at `price_E`, if known: by
    how much the sample's loads differ from them is taken off the sample's shares, so that
    another call from its own result comes nearer than the sample alone could.
    """
    n, experts = scores_NxE.shape
    rows = np.arange(n)
    if n > _SAMPLE_ROWS:
        rows = np.sort(Permutation(n, _SAMPLE_KEY).range(0, _SAMPLE_ROWS))
    dual = _SmoothedDual(scores_NxE, rows, price_E)
    share_E = capacity_E / n
    if load_E is not None:
        share_E = np.maximum(share_E + dual.loads() - load_E / n, 0.0)
    heat = dual.mean_distance() if heat_nats is None else heat_nats
    price, undecided = price_E, n
    while heat > dual.coldest_nats and undecided > _UNDECIDED_PER_EXPERT * experts:
        price, undecided = dual.minimise(share_E, price, heat)
        heat /= _COOLING
    return price


class _SmoothedDual:
    """D(p) / N at a temperature, with its gradient and curvature.

    Prices are changes from a base near the minimum, and scores count from a row's best there:
    what decides is near zero, where float32 is precise. Experts by rows, so that what is done
    for every row runs over long contiguous lines.
    """

    def __init__(
        self,
        scores_NxE: NDArray[np.floating],
        rows: NDArray[np.int64],
        base_E: Float64Array,
    ) -> None:
        self._source, self._rows = scores_NxE, rows
        self._scores_ExN = np.empty((len(base_E), len(rows)), dtype=np.float32)
        self._rebase(base_E)
        # Loads are whole rows: nearer than half a row an expert is near enough.
        self._tolerance = min(0.01, 0.5 * len(base_E) / len(rows))

    def _rebase(self, base_E: Float64Array) -> None:
        self._base_E = base_E
        largest = np.float32(0)
        for start in range(0, len(self._rows), _BLOCK):
            scores = self._source[self._rows[start : start + _BLOCK]]
            largest = max(largest, np.abs(scores).max())
            block = (scores - base_E).T
            self._scores_ExN[:, start : start + _BLOCK] = block - block.max(axis=0)
        # Scores differ by no less than a float32's resolution, unless they are tied.
        self.coldest_nats = max(_COLDEST_NATS, float(np.spacing(largest)) / 4)

    def mean_distance(self) -> float:
        return -float(self._scores_ExN.mean(dtype=np.float64))

    def loads(self) -> Float64Array:
        """Return the shares of the rows that each expert has at the base."""
        best = self._scores_ExN.argmax(axis=0)
        return np.bincount(best, minlength=len(self._scores_ExN)) / len(best)

    def minimise(
        self, share_E: Float64Array, price_E: Float64Array, heat: float
    ) -> tuple[Float64Array, int]:
        """Return the prices at one temperature, and how many rows they leave undecided."""
        if np.abs(price_E - self._base_E).max() > _FAR_FROM_BASE * heat:
            self._rebase(price_E)
        price = price_E - self._base_E
        value, probability = self._value(share_E, price, heat)
        for _ in range(_NEWTON_STEPS):
            load = probability.mean(axis=1, dtype=np.float64)
            if np.abs(load - share_E).sum() <= self._tolerance:
                break
            step = self._newton_step(probability, load, load - share_E, heat)
            for _ in range(5):
                next_value, next_probability = self._value(share_E, price + step, heat)
                if next_value <= value:
                    break
                step /= 4
            else:
                break  # as low as float32 can tell
            price, value, probability = price + step, next_value, next_probability
        undecided = int(np.count_nonzero(probability.max(axis=0) < 0.9))
        return self._base_E + price, undecided

    def _value(
        self, share_E: Float64Array, price: Float64Array, heat: float
    ) -> tuple[float, Float32Array]:
        """Return D(p) / N and the probability of every expert for every row."""
        experts, n = self._scores_ExN.shape
        probability = np.empty((experts, n), dtype=np.float32)
        prices = price.astype(np.float32)[:, None]
        soft_max = 0.0
        for start in range(0, n, _BLOCK):
            p = probability[:, start : start + _BLOCK]
            np.subtract(self._scores_ExN[:, start : start + _BLOCK], prices, out=p)
            p /= np.float32(heat)
            top = p.max(axis=0)
            p -= top
            np.exp(p, out=p)
            total = p.sum(axis=0)
            p /= total
            soft_max += float((top + np.log(total)).sum(dtype=np.float64))
        return soft_max / n * heat + float(share_E @ price), probability

    @staticmethod
    def _newton_step(
        probability: Float32Array, load: Float64Array, excess: Float64Array, heat: float
    ) -> Float64Array:
        curvature = np.diag(load) - (probability @ probability.T) / probability.shape[1]
        # Singular, since adding one number to all prices changes nothing; and an expert that
        # nobody is near to has no curvature at all.
        curvature[np.diag_indices_from(curvature)] += 1e-6 / len(load)
        step: Float64Array = np.linalg.solve(curvature, excess) * heat
        step -= step.mean()
        return step * min(1.0, _LARGEST_MOVE * heat / max(float(np.abs(step).max()), 1e-30))
