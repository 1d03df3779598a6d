"""Greedy balanced assignment: `paper` and `regret`, in at most E vectorised passes.

Sequences are visited in a fixed order, and each goes to its best expert that still has room
(section 2.3 of arXiv 2410.03529). Between two fills the rule is simply "the best of the experts
that are open", which is one vectorised step: every expert keeps the sorted visiting places of
the sequences that want it, the next expert to fill is the one whose capacity-th place comes
first, and only those it turns away choose again.

`paper` visits by descending best score. `regret` visits by descending best minus second best,
worked out once, before the first fill: a sequence whose second choice has closed keeps its
place. Ties go by row, then by expert id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 14  # rows looked at at a time: temporaries stay in the cache


def paper_order(scores_NxE: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the rows by descending best score, ties by row."""
    best_N = np.empty(len(scores_NxE), dtype=np.float32)
    for start in range(0, len(scores_NxE), _BLOCK):
        scores_NxE[start : start + _BLOCK].max(axis=1, out=best_N[start : start + _BLOCK])
    return np.argsort(-best_N, kind="stable")


def regret_order(scores_NxE: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the rows by descending best minus second best score, ties by row.

    With one expert there is no second best, and the order is that of the rows.
    """
    n, experts = scores_NxE.shape
    regret_N = np.zeros(n, dtype=np.float64)
    for start in range(0, n if experts > 1 else 0, _BLOCK):
        block = scores_NxE[start : start + _BLOCK].astype(np.float64)
        rows = np.arange(len(block))
        first = block.argmax(axis=1)
        best = block[rows, first]
        block[rows, first] = -np.inf
        regret_N[start : start + _BLOCK] = best - block.max(axis=1)
    return np.argsort(-regret_N, kind="stable")


def fill(
    scores_NxE: NDArray[np.generic], capacity_E: NDArray[np.int64], order_N: NDArray[np.intp]
) -> NDArray[np.int32]:
    """Visit the rows in `order_N`, each to its best expert that still has room: int32[N].

    `capacity_E` must sum to N. Work is one scoring of all rows, and one of the rows that are
    turned away at each of the at most E fills.
    """
    n, experts = scores_NxE.shape
    open_E = capacity_E > 0
    expert_N = np.empty(n, dtype=np.int32)
    places = np.arange(n, dtype=np.int64)
    waiting = _split(places, _choose(scores_NxE, order_N, open_E), experts)
    while open_E.any():
        # The place at which each open expert would take its last sequence.
        full_at = np.full(experts, n, dtype=np.int64)
        for other in np.flatnonzero(open_E):
            if len(waiting[other]) >= capacity_E[other]:
                full_at[other] = waiting[other][capacity_E[other] - 1]
        e = int(full_at.argmin())
        taken, away = waiting[e][: capacity_E[e]], waiting[e][capacity_E[e] :]
        expert_N[order_N[taken]] = e
        open_E[e] = False
        if away.size == 0:
            continue
        choice = _choose(scores_NxE, order_N[away], open_E)
        for heir, joining in enumerate(_split(away, choice, experts)):
            if joining.size:
                # Two sorted runs, which a stable sort merges in linear time.
                merged = np.concatenate([waiting[heir], joining])
                merged.sort(kind="stable")
                waiting[heir] = merged
    return expert_N


def _choose(
    scores_NxE: NDArray[np.generic], rows: NDArray[np.intp], open_E: NDArray[np.bool_]
) -> NDArray[np.uint16]:
    """Return the best open expert of each of these rows, ties to the lowest id."""
    columns = np.flatnonzero(open_E).astype(np.uint16)
    closed = np.flatnonzero(~open_E)
    choice = np.empty(len(rows), dtype=np.uint16)
    for start in range(0, len(rows), _BLOCK):
        block = scores_NxE[rows[start : start + _BLOCK]]
        if closed.size:
            block = block[:, columns]
        choice[start : start + _BLOCK] = columns[block.argmax(axis=1)]
    return choice


def _split(
    places: NDArray[np.int64], choice: NDArray[np.uint16], experts: int
) -> list[NDArray[np.int64]]:
    """Return each expert's places, in ascending order."""
    by_expert = np.argsort(choice, kind="stable")
    ends = np.cumsum(np.bincount(choice, minlength=experts))[:-1]
    return np.split(places[by_expert], ends)
