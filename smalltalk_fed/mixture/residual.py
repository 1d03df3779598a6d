"""The E x E residual graph of an assignment, and shortest augmenting paths in it.

An assignment of N rows to E experts is improved by moving rows between experts. Moving a row of
expert a to expert b costs s_xa - s_xb; the cheapest row of each pair makes a graph of only E
nodes. Given prices under which every row sits at its best expert (all reduced costs are at
least zero), sending rows along shortest paths from overfull to underfull experts keeps that so,
and ends at an optimal assignment (successive shortest paths; Ahuja, Magnanti and Orlin 1993,
section 9.7). All rows tied along a path move at once.

Rules: exact. Scores become whole numbers of units held in float64, every sum stays below 2**53,
and ties are ties. Rows are gathered in blocks, so that memory doesn't grow with N.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

_BLOCK = 1 << 13


class Residual:
    """Who sits where, and what the cheapest move of each pair of experts costs."""

    def __init__(
        self, scores_NxE: NDArray[np.generic], scale: float, expert_N: NDArray[np.integer]
    ) -> None:
        """Take the scores, the units in a nat, and the assignment to start from."""
        self._scores = scores_NxE
        self._scale = scale
        self.experts = scores_NxE.shape[1]
        self._rows = _rows_of(expert_N, self.experts)
        self.load_E = np.array([len(rows) for rows in self._rows])
        self.cost_ExE = np.full((self.experts, self.experts), np.inf)
        self._ties_ExE = np.zeros((self.experts, self.experts), dtype=np.int64)
        for a in range(self.experts):
            self._measure(a)

    def assignment(self) -> NDArray[np.int32]:
        """Return the assignment as it is now, int32[N]."""
        out = np.empty(len(self._scores), dtype=np.int32)
        for e, rows in enumerate(self._rows):
            out[rows] = e
        return out

    def balance(self, capacity_E: NDArray[np.int64], price_E: Float64Array) -> Float64Array:
        """Move rows until the loads are the capacities; return the prices that go with it.

        `price_E`, whole units, must be such that every row is at an argmax of score - price;
        the prices returned are so too, for the assignment then.
        """
        price = price_E.copy()
        while (self.load_E > capacity_E).any():
            reduced = self.cost_ExE - price[:, None] + price
            over, under = self.load_E > capacity_E, self.load_E < capacity_E
            distance, path = _nearest(reduced, over, under)
            price -= np.minimum(distance, distance[path[-1]])
            room = min(
                self.load_E[path[0]] - capacity_E[path[0]],
                capacity_E[path[-1]] - self.load_E[path[-1]],
            )
            self._move(path, int(room))
        return price

    def _move(self, path: list[int], at_most: int) -> None:
        """Move as many rows along every edge of the path as are tied at its cost."""
        edges = list(itertools.pairwise(path))
        k = min(at_most, *(int(self._ties_ExE[a, b]) for a, b in edges))
        places = [self._tied(a, b)[:k] for a, b in edges]
        moved = [self._rows[a][at] for (a, _), at in zip(edges, places, strict=True)]
        for (a, _), at in zip(edges, places, strict=True):
            self._rows[a] = np.delete(self._rows[a], at)
        for (_, b), rows in zip(edges, moved, strict=True):
            self._rows[b] = np.concatenate([self._rows[b], rows])
        for (a, _), rows in zip(edges, moved, strict=True):
            self._ties_ExE[a] -= self._tally(
                _lost(self._scores, self._scale, a, rows), self.cost_ExE[a]
            )
        for (_, b), rows in zip(edges, moved, strict=True):
            lost = _lost(self._scores, self._scale, b, rows)
            cheapest = lost.min(axis=0)
            self._ties_ExE[b][cheapest < self.cost_ExE[b]] = 0
            np.minimum(self.cost_ExE[b], cheapest, out=self.cost_ExE[b])
            self._ties_ExE[b] += self._tally(lost, self.cost_ExE[b])
        for a in path[:-1]:
            # Where the last of the cheapest rows has left, the next cheapest must be found.
            if (self._ties_ExE[a] <= 0).any():
                self._measure(a)
        self.load_E[path[0]] -= k
        self.load_E[path[-1]] += k

    def _measure(self, a: int) -> None:
        """Find the cheapest move from a to every other expert, and how many rows it has."""
        cost = np.full(self.experts, np.inf)
        ties = np.zeros(self.experts, dtype=np.int64)
        for start in range(0, len(self._rows[a]), _BLOCK):
            lost = _lost(self._scores, self._scale, a, self._rows[a][start : start + _BLOCK])
            cheapest = lost.min(axis=0)
            ties[cheapest < cost] = 0
            np.minimum(cost, cheapest, out=cost)
            ties += self._tally(lost, cost)
        self.cost_ExE[a], self._ties_ExE[a] = cost, ties

    def _tied(self, a: int, b: int) -> NDArray[np.intp]:
        """Return the places in a's list of the rows that move to b at the cheapest cost."""
        rows = self._rows[a]
        here = to_units(self._scores[rows, a], self._scale)
        return np.flatnonzero(
            here - to_units(self._scores[rows, b], self._scale) == self.cost_ExE[a, b]
        )

    @staticmethod
    def _tally(lost: Float64Array, cost: Float64Array) -> NDArray[np.int64]:
        return np.count_nonzero(lost == cost, axis=0)


def to_units(scores: NDArray[np.generic], scale: float) -> Float64Array:
    """Return scores as whole numbers of units, float64."""
    units = scores.astype(np.float64)
    units *= scale
    return np.rint(units, out=units)


def cheapest_moves(
    scores_NxE: NDArray[np.generic], scale: float, expert_N: NDArray[np.integer]
) -> Float64Array:
    """Return the cost of the cheapest move of each pair of experts, units, float64[E, E].

    Infinite from an expert without rows, and on the diagonal.
    """
    experts = scores_NxE.shape[1]
    cost_ExE = np.full((experts, experts), np.inf)
    for a, rows in enumerate(_rows_of(expert_N, experts)):
        for start in range(0, len(rows), _BLOCK):
            lost = _lost(scores_NxE, scale, a, rows[start : start + _BLOCK])
            np.minimum(cost_ExE[a], lost.min(axis=0), out=cost_ExE[a])
    return cost_ExE


def shortest_distances(cost_ExE: Float64Array) -> Float64Array:
    """Return all shortest distances (Floyd and Warshall); a negative diagonal is a cycle.

    A negative cycle is a set of moves that keeps all loads and gains: the assignment isn't
    optimal. Without one it is.
    """
    distance = cost_ExE.copy()
    np.fill_diagonal(distance, 0.0)
    for via in range(len(distance)):
        np.minimum(distance, distance[:, via, None] + distance[via], out=distance)
    return distance


def _rows_of(expert_N: NDArray[np.integer], experts: int) -> list[NDArray[np.intp]]:
    by_expert = np.argsort(expert_N.astype(np.uint16), kind="stable")
    return np.split(by_expert, np.cumsum(np.bincount(expert_N, minlength=experts))[:-1])


def _lost(
    scores_NxE: NDArray[np.generic], scale: float, a: int, rows: NDArray[np.intp]
) -> Float64Array:
    """Return what each row loses by moving from a to every expert (infinite: to a)."""
    units = to_units(scores_NxE[rows], scale)
    lost = units[:, a, None] - units
    lost[:, a] = np.inf
    return lost


def _nearest(
    reduced_ExE: Float64Array, over_E: NDArray[np.bool_], under_E: NDArray[np.bool_]
) -> tuple[Float64Array, list[int]]:
    """Find the shortest path from any overfull expert to the nearest underfull one (Dijkstra).

    Returns the distances, final up to that of the path's end, and the path. Ties go to the
    lowest expert id.
    """
    experts = len(over_E)
    distance = np.where(over_E, 0.0, np.inf)
    before = np.full(experts, -1)
    open_distance = distance.copy()
    while True:
        here = int(open_distance.argmin())
        if under_E[here]:
            break
        open_distance[here] = np.inf
        onward = distance[here] + reduced_ExE[here]
        nearer = onward < distance  # never a finished one: reduced costs aren't negative
        distance[nearer] = open_distance[nearer] = onward[nearer]
        before[nearer] = here
    path = [here]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return distance, path[::-1]
