"""first version"""
from __future__ import annotations
import numpy as np
from numpy.typing import NDArray
from smalltalk_fed.mixture import greedy
from smalltalk_fed.mixture.residual import Residual, cheapest_cycles, to_units

Float64Array = NDArray[np.float64]
_BLOCK=1<<13

def solve(scores_NxE, capacity_E):
    n, experts = scores_NxE.shape
    scale = _scale(scores_NxE)
    price = np.zeros(experts)
    expert_N = np.empty(n, np.int32)
    for s in range(0, n, _BLOCK):
        expert_N[s:s+_BLOCK] = (to_units(scores_NxE[s:s+_BLOCK], scale) - price).argmax(1)
    residual = Residual(scores_NxE, scale, expert_N)
    residual.balance(capacity_E, price)
    distance = cheapest_cycles(residual.cost_ExE)
    assert (np.diag(distance) >= 0).all()
    twice_E = 2*experts
    price = (distance - distance.T).sum(1)  # units / 2E
    expert_N = residual.expert_N()
    free = distance + distance.T
    np.fill_diagonal(free, 1)
    if (free == 0).any():
        expert_N = _resolve(scores_NxE, scale, price, capacity_E)
    return expert_N, price / (twice_E*scale)

def _scale(scores):
    n, experts = scores.shape
    largest = max(float(scores.max()), -float(scores.min()), 1e-30)
    bits = 53 - int(np.ceil(np.log2(8*experts)))
    return 2.0 ** (bits - int(np.frexp(largest)[1]))

def _resolve(scores, scale, price, capacity):
    n, experts = scores.shape
    expert_N = np.empty(n, np.int32)
    tied_rows, tied = [], []
    for s in range(0, n, _BLOCK):
        v = to_units(scores[s:s+_BLOCK], scale)*(2*experts) - price
        best = v == v.max(1, keepdims=True)
        expert_N[s:s+_BLOCK] = best.argmax(1)
        several = np.flatnonzero(best.sum(1) > 1)
        tied_rows.append(s+several); tied.append(best[several])
    rows = np.concatenate(tied_rows); tight = np.concatenate(tied).astype(np.int8)
    load = np.bincount(expert_N, minlength=experts) - np.bincount(expert_N[rows], minlength=experts)
    room = capacity - load
    assert (room >= 0).all()
    mine = greedy.fill(tight, room, np.arange(len(rows)))
    misplaced = tight[np.arange(len(rows)), mine] == 0
    mine[misplaced] = tight[misplaced].argmax(1)
    r = Residual(tight, 1.0, mine); r.balance(room, np.zeros(experts))
    expert_N[rows] = r.expert_N()
    return expert_N
