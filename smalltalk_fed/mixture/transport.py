"""The optimal balanced assignment, exactly, at millions of rows.

Maximise the sum of the assigned scores under exact capacities. Linear programming duality gives
a price per expert, and every row sits at its argmax of score minus price; so all that has to be
found is E prices, and who gets what among ties.

1. Near prices from a sample (`prices`).
2. Only rows near a tie can still move: those, some per cent, are the same problem with smaller
   capacities, solved the same way down to some hundred rows, and these exactly (`residual`).
3. A certificate: the cheapest moves of all rows have no negative cycle, so the assignment is
   optimal. If they have one, rows that were set aside matter: more of them join step 2.
4. One answer: the prices are the middle of all optimal ones, and rows that several optimal
   assignments place differently are dealt out in row order. So the result depends on scores
   and capacities alone, not on where the search began.

Rules: whole numbers of units in float64, exact below 2**53. A unit is 2**-33 nats or finer for
scores within 2,048 nats at E = 32, far below a float32's resolution there. Memory next to the
scores: about 40 bytes a row, blocks, and a copy of the rows near a tie. Capacities are positive.
About 2 CPU seconds for 1.4 million rows and 32 experts, milliseconds for some thousands; rows in
a few clusters with next to no spread, which leave prices undetermined, take five times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.mixture import greedy, prices
from smalltalk_fed.mixture.residual import (
    Float64Array,
    Residual,
    cheapest_moves,
    shortest_distances,
    to_units,
)

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

_BLOCK = 1 << 13  # rows looked at at a time: temporaries stay in the cache
_APPROACHES = 3
_NEAR_PER_SURPLUS = 16  # rows near a tie taken for each row that has to move


def solve(
    scores_NxE: NDArray[np.float32], capacity_E: Int64Array
) -> tuple[Int32Array, Float64Array]:
    """Return the optimal assignment, int32[N], and its prices in nats, float64[E], mean zero.

    Scores are finite and row-major; capacities are at least 1 and sum to N.
    """
    experts = scores_NxE.shape[1]
    low, high = float(scores_NxE.min()), float(scores_NxE.max())
    scale = _units_per_nat(max(-low, high), experts)
    start = prices.approach(scores_NxE, capacity_E, np.zeros(experts))
    units = _Units(scale, high - low)
    expert_N, cost_ExE = _optimum(scores_NxE, units, capacity_E, start)
    distance = shortest_distances(cost_ExE)
    # The mean over all experts r of the two extreme optimal prices with p_r = 0. It is inside
    # the set of optimal prices, so that a row is tied under it only if it can be elsewhere.
    price = (distance - distance.T).sum(axis=1)  # in units / 2E: whole numbers
    ties = distance + distance.T == 0
    if np.count_nonzero(ties) > experts:
        expert_N = _deal_ties(scores_NxE, scale, capacity_E, price)
    return expert_N, price / (2 * experts * scale)


def _units_per_nat(largest_nats: float, experts: int) -> float:
    """Return a power of two such that 8E times the largest score stays below 2**53 units."""
    if largest_nats == 0:
        return 1.0
    bits = 53 - math.ceil(math.log2(8 * experts))
    return 2.0 ** (bits - math.frexp(largest_nats)[1])


@dataclass(frozen=True)
class _Units:
    per_nat: float
    range_nats: float  # of the scores: optimal prices are nowhere further apart

    def price(self, price_E: Float64Array) -> Float64Array:
        """Return prices in nats as whole units, kept within the range that stays exact."""
        centred = price_E - price_E.mean()
        return np.rint(np.clip(centred, -self.range_nats, self.range_nats) * self.per_nat)


@dataclass(frozen=True, eq=False)
class _Free:
    """Every row at its best expert under prices, loads as they come."""

    price_E: Float64Array
    expert_N: Int32Array
    gap_N: Float64Array
    load_E: Int64Array
    surplus: int  # rows that are too many where they are


def _optimum(
    scores_NxE: NDArray[np.float32],
    units: _Units,
    capacity_E: Int64Array,
    start_E: Float64Array,
    heat_nats: float | None = None,
) -> tuple[Int32Array, Float64Array]:
    """Return an optimal assignment and the cost of its cheapest moves, float64[E, E].

    Starts from prices in nats, which are about `heat_nats` off if that is known.
    """
    n, experts = scores_NxE.shape
    widen = 1
    while True:
        free = _settle(scores_NxE, units, capacity_E, start_E, heat_nats)
        count = max(_NEAR_PER_SURPLUS * free.surplus, 32 * experts) * widen
        if 2 * count >= n:
            residual = Residual(scores_NxE, units.per_nat, free.expert_N)
            residual.balance(capacity_E, free.price_E)
            return residual.assignment(), residual.cost_ExE
        near = np.sort(np.argpartition(free.gap_N, count)[:count])
        start_E, heat_nats = free.price_E / units.per_nat, None
        widen *= 4
        room_E = capacity_E - free.load_E + np.bincount(free.expert_N[near], minlength=experts)
        if (room_E < 0).any():
            continue
        expert_N = free.expert_N.copy()
        near_heat = float(free.gap_N[near].max()) / units.per_nat / 4
        expert_N[near], _ = _optimum(scores_NxE[near], units, room_E, start_E, near_heat)
        cost_ExE = cheapest_moves(scores_NxE, units.per_nat, expert_N)
        if (np.diag(shortest_distances(cost_ExE)) >= 0).all():
            return expert_N, cost_ExE


def _settle(
    scores_NxE: NDArray[np.float32],
    units: _Units,
    capacity_E: Int64Array,
    start_E: Float64Array,
    heat_nats: float | None,
) -> _Free:
    """Return the free assignment at prices that are as near as `prices` comes cheaply."""
    free = _free(scores_NxE, units, capacity_E, start_E)
    for _ in range(_APPROACHES):
        if 8 * _NEAR_PER_SURPLUS * free.surplus <= len(scores_NxE):
            break
        nearer_E = prices.approach(
            scores_NxE, capacity_E, free.price_E / units.per_nat, free.load_E, heat_nats
        )
        nearer = _free(scores_NxE, units, capacity_E, nearer_E)
        slow = 2 * nearer.surplus > free.surplus
        free, heat_nats = min(nearer, free, key=lambda state: state.surplus), None
        if slow:
            break
    return free


def _free(
    scores_NxE: NDArray[np.float32], units: _Units, capacity_E: Int64Array, price_E: Float64Array
) -> _Free:
    n, experts = scores_NxE.shape
    price = units.price(price_E)
    expert_N = np.empty(n, dtype=np.int32)
    gap_N = np.full(n, np.inf)
    for start in range(0, n, _BLOCK):
        value = to_units(scores_NxE[start : start + _BLOCK], units.per_nat) - price
        rows = np.arange(len(value))
        best = value.argmax(axis=1)
        expert_N[start : start + _BLOCK] = best
        if experts > 1:
            lead = value[rows, best]
            value[rows, best] = -np.inf
            gap_N[start : start + _BLOCK] = lead - value.max(axis=1)
    load_E = np.bincount(expert_N, minlength=experts)
    surplus = int(np.abs(load_E - capacity_E).sum()) // 2
    return _Free(price, expert_N, gap_N, load_E, surplus)


def _deal_ties(
    scores_NxE: NDArray[np.float32], scale: float, capacity_E: Int64Array, price_E: Float64Array
) -> Int32Array:
    """Assign by exact prices (units / 2E); deal out the rows that are tied under them.

    Tied rows go, in row order, to their first expert that still has room; those that find none
    are put right by as many moves among tied experts as it takes.
    """
    n, experts = scores_NxE.shape
    expert_N = np.empty(n, dtype=np.int32)
    rows_of_blocks, tied_of_blocks = [], []
    for start in range(0, n, _BLOCK):
        value = to_units(scores_NxE[start : start + _BLOCK], scale)
        value *= 2 * experts
        value -= price_E
        is_best = value == value.max(axis=1, keepdims=True)
        expert_N[start : start + _BLOCK] = is_best.argmax(axis=1)
        several = np.flatnonzero(np.count_nonzero(is_best, axis=1) > 1)
        rows_of_blocks.append(start + several)
        tied_of_blocks.append(is_best[several])
    rows, tied = np.concatenate(rows_of_blocks), np.concatenate(tied_of_blocks).view(np.int8)
    unique_N = np.ones(n, dtype=bool)
    unique_N[rows] = False
    room_E = capacity_E - np.bincount(expert_N[unique_N], minlength=experts)
    dealt = greedy.fill(tied, room_E, np.arange(len(rows)))
    outside = tied[np.arange(len(rows)), dealt] == 0
    dealt[outside] = tied[outside].argmax(axis=1)
    residual = Residual(tied, 1.0, dealt)
    residual.balance(room_E, np.zeros(experts))
    expert_N[rows] = residual.assignment()
    return expert_N
