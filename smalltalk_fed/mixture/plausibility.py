"""Which score blocks of a round look odd beside the others, without any node's help.

What a prefix scores depends on the text: routers that know nothing of each other still find
the same prefixes hard, or, once they know different kinds of text, can be told from each
other's scores which kind it is. A block that has nothing to do with all others, has another
level or spread, a gap in its middle, or is nearly another's copy is odd. Rules: a block is
held against the other blocks of its round, so that one liar doesn't change what is usual; a
sample of rows is enough. Odd is not guilty: an odd block is audited before it counts, and
nothing more. Lies within what is usual are for audits by chance to find. Limits, and how near
honest blocks come to them, are in docs/experiments.md ("Checks on results").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.mixture.permutation import Permutation

Float64Array = NDArray[np.float64]

ROWS = 1 << 14  # looked at
ROWS_LEAST = 256  # in fewer chance makes honest blocks odd
# Part of a block's variance that the other blocks explain: the larger of least squares on
# their scores and the squares of those, and of the means over `BINS` of one of them, corrected
# for how many numbers are fitted. Scores at random have nothing of it; honest routers of
# different kinds of text may be far from alike, and pass through no correlation at all.
EXPLAINED = 0.03
BINS = 16
# Mean score beside the median of the others' means, as a part of that.
LEVEL = 0.4
# Standard deviation beside the median of the others', as a factor either way.
SPREAD = 3.0
# Standard deviation of the difference of two blocks, as a part of their own.
COPY = 0.1
# Largest gap within the middle of a block's sorted scores, in standard deviations and in mean
# distances of neighbours: raising some scores by a step leaves one.
GAP, GAP_DISTANCES = 0.25, 20.0
MIDDLE = (0.1, 0.9)

_SAMPLE_KEY = b"smalltalk-fed plausibility sample 1"
_RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class BlockFigures:
    """What is looked at, a number for each block; `nearest_E` is its most similar block."""

    explained_E: Float64Array
    level_E: Float64Array
    spread_E: Float64Array
    gap_E: Float64Array
    copy_E: Float64Array
    nearest_E: NDArray[np.int64]


def odd_blocks(scores_NxE: NDArray[np.floating]) -> dict[int, str]:
    """Return the experts whose score blocks look odd, and why, in one clause each."""
    n, experts = scores_NxE.shape
    if experts < 2 or n < max(ROWS_LEAST, 4 * experts):
        return {}
    found = block_figures(scores_NxE)
    odd: dict[int, str] = {}
    for expert in range(experts):
        level, spread = found.level_E[expert], found.spread_E[expert]
        if found.copy_E[expert] < COPY:
            odd[expert] = f"its scores are nearly those of router {found.nearest_E[expert]}"
        elif found.explained_E[expert] < EXPLAINED:
            part = max(0.0, float(found.explained_E[expert]))
            odd[expert] = f"its scores have nothing to do with the others' ({part:.0%} explained)"
        elif abs(level) > LEVEL:
            where = "above" if level > 0 else "below"
            odd[expert] = f"its mean score is {abs(level):.0%} {where} the others'"
        elif not 1 / SPREAD < spread < SPREAD:
            odd[expert] = f"its scores spread {spread:.2f} times as far as the others'"
        elif found.gap_E[expert] > GAP:
            odd[expert] = "a gap parts its scores, as if some were raised"
    return odd


def block_figures(scores_NxE: NDArray[np.floating]) -> BlockFigures:
    """Return the figures that `odd_blocks` goes by; two blocks at least."""
    n, experts = scores_NxE.shape
    rows = np.arange(n) if n <= ROWS else np.sort(Permutation(n, _SAMPLE_KEY).range(0, ROWS))
    scores = scores_NxE[rows].astype(np.float64)
    mean_E, std_E = scores.mean(axis=0), scores.std(axis=0)
    covariance = np.cov(scores.T, bias=True)
    variance_E = np.diag(covariance)
    apart = np.sqrt(np.maximum(variance_E[:, None] + variance_E - 2 * covariance, 0.0))
    apart /= np.maximum(np.sqrt((variance_E[:, None] + variance_E) / 2), 1e-12)
    np.fill_diagonal(apart, np.inf)
    others = ~np.eye(experts, dtype=bool)
    return BlockFigures(
        _explained(scores, mean_E, std_E),
        np.array([1 - _beside(mean_E, mine) for mine in others]),
        np.array([_beside(std_E, mine) for mine in others]),
        np.array([_gap(column) for column in scores.T]),
        apart.min(axis=1),
        apart.argmin(axis=1),
    )


def _explained(scores_NxE: Float64Array, mean_E: Float64Array, std_E: Float64Array) -> Float64Array:
    """Return which part of each block's variance the others explain (adjusted R squared)."""
    n, experts = scores_NxE.shape
    z = (scores_NxE - mean_E) / np.maximum(std_E, 1e-12)
    squares = z * z
    features = np.concatenate([z, squares - squares.mean(axis=0)], axis=1)
    gram, toward = features.T @ features / n, features.T @ z / n
    explained_E = _by_bins(z)
    for expert in range(experts):
        kept = np.flatnonzero(np.arange(2 * experts) % experts != expert)
        matrix = gram[np.ix_(kept, kept)] + _RIDGE * np.eye(len(kept))
        part = float(toward[kept, expert] @ np.linalg.solve(matrix, toward[kept, expert]))
        part = 1 - (1 - min(part, 1.0)) * (n - 1) / max(1, n - len(kept) - 1)
        explained_E[expert] = max(explained_E[expert], part)
    return explained_E


def _by_bins(z_NxE: Float64Array) -> Float64Array:
    """Return which part of each block's variance the bins of its best explaining block do."""
    n, experts = z_NxE.shape
    best_E = np.full(experts, -np.inf)
    if n <= 4 * BINS:
        return best_E
    for other in range(experts):
        rank_N = np.empty(n, dtype=np.int64)
        rank_N[np.argsort(z_NxE[:, other], kind="stable")] = np.arange(n)
        in_bin = (rank_N * BINS // n == np.arange(BINS)[:, None]).astype(np.float64)
        mean_BxE = in_bin @ z_NxE / in_bin.sum(axis=1, keepdims=True)
        part_E = (in_bin.sum(axis=1) @ mean_BxE**2) / n
        part_E = 1 - (1 - part_E) * (n - 1) / (n - BINS)
        part_E[other] = -np.inf
        best_E = np.maximum(best_E, part_E)
    return best_E


def _gap(scores_N: Float64Array) -> float:
    """Return a block's largest gap in standard deviations; 0 where few scores make gaps."""
    first, last = (int(part * (len(scores_N) - 1)) for part in MIDDLE)
    middle = np.sort(scores_N)[first : last + 1]
    gap, usual = float(np.diff(middle).max()), float(middle[-1] - middle[0]) / len(middle)
    return gap / max(float(scores_N.std()), 1e-12) if gap > GAP_DISTANCES * usual else 0.0


def _beside(values_E: Float64Array, others: NDArray[np.bool_]) -> float:
    """One block's value through the median of the others', or of two through the nearer one.

    The median of two would lie half way to a liar.
    """
    mine, theirs = float(values_E[~others][0]), values_E[others]
    usual = float(np.median(theirs))
    if len(theirs) == 2:
        usual = float(theirs[np.abs(theirs - mine).argmin()])
    return mine / (usual if abs(usual) > 1e-12 else 1e-12)
