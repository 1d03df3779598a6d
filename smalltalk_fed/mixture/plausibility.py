"""Which score blocks of a round look odd beside the others, without any node's help.

What a prefix scores depends first of all on the text: all honest routers find the same
prefixes easy and the same ones hard, and are about equally good on average. A block that
doesn't rise and fall with any other, has another level or spread, or is nearly another's copy
is odd. Rules: a block is held against the other blocks of its round, by medians, so that one
liar doesn't change what is usual; a sample of rows is enough. Odd is not guilty: an odd block
is audited before it counts, and nothing more. Lies within what is usual are for audits by
chance to find. Limits and how often honest blocks reach them are in docs/experiments.md
("Checks on results").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.mixture.permutation import Permutation

ROWS = 1 << 14  # looked at
# Correlation of a block with the block that is most like it.
ALIKE = 0.5
# Mean score beside the median of the others' means, as a part of that.
LEVEL = 0.25
# Standard deviation beside the median of the others', as a factor either way.
SPREAD = 2.0
# Standard deviation of the difference of two blocks, as a part of the usual pair's.
COPY = 0.1

_SAMPLE_KEY = b"smalltalk-fed plausibility sample 1"


@dataclass(frozen=True, eq=False)
class BlockFigures:
    """What is looked at, a number for each block; `nearest_E` is its most similar block."""

    alike_E: NDArray[np.float64]
    level_E: NDArray[np.float64]
    spread_E: NDArray[np.float64]
    copy_E: NDArray[np.float64]
    nearest_E: NDArray[np.int64]


def odd_blocks(scores_NxE: NDArray[np.floating]) -> dict[int, str]:
    """Return the experts whose score blocks look odd, and why, in one clause each."""
    if scores_NxE.shape[1] < 2 or len(scores_NxE) < 2:
        return {}
    found = block_figures(scores_NxE)
    odd: dict[int, str] = {}
    for expert in range(scores_NxE.shape[1]):
        alike, level = found.alike_E[expert], found.level_E[expert]
        spread, copy = found.spread_E[expert], found.copy_E[expert]
        if copy < COPY:
            odd[expert] = f"its scores are nearly those of router {found.nearest_E[expert]}"
        elif alike < ALIKE:
            odd[expert] = f"its scores don't follow any other router's (correlation {alike:.2f})"
        elif abs(level) > LEVEL:
            odd[expert] = f"its mean score is {abs(level):.0%} {'above' if level > 0 else 'below'}"
            odd[expert] += " the others'"
        elif not 1 / SPREAD < spread < SPREAD:
            odd[expert] = f"its scores spread {spread:.2f} times as far as the others'"
    return odd


def block_figures(scores_NxE: NDArray[np.floating]) -> BlockFigures:
    """Return the figures that `odd_blocks` goes by; two blocks at least."""
    n, experts = scores_NxE.shape
    rows = np.arange(n) if n <= ROWS else np.sort(Permutation(n, _SAMPLE_KEY).range(0, ROWS))
    scores = scores_NxE[rows].astype(np.float64)
    mean_E, std_E = scores.mean(axis=0), scores.std(axis=0)
    covariance = np.cov(scores.T, bias=True)
    variance_E = np.diag(covariance)
    correlation = covariance / np.maximum(np.sqrt(np.outer(variance_E, variance_E)), 1e-12)
    apart = np.sqrt(np.maximum(variance_E[:, None] + variance_E - 2 * covariance, 0.0))
    np.fill_diagonal(correlation, -np.inf)
    np.fill_diagonal(apart, np.inf)
    pairs = apart[np.triu_indices(experts, 1)]
    # Of two blocks there is one pair: what is usual is then how far their scores spread.
    usual = float(np.median(pairs)) if experts > 2 else float(std_E.mean())
    others = ~np.eye(experts, dtype=bool)
    return BlockFigures(
        correlation.max(axis=1),
        np.array([1 - _beside(mean_E, mine) for mine in others]),
        np.array([_beside(std_E, mine) for mine in others]),
        apart.min(axis=1) / max(usual, 1e-12),
        apart.argmin(axis=1),
    )


def _beside(values_E: NDArray[np.float64], others: NDArray[np.bool_]) -> float:
    """One block's value through the median of the others', or of two through the nearer one.

    The median of two would lie half way to a liar.
    """
    mine, theirs = float(values_E[~others][0]), values_E[others]
    usual = float(np.median(theirs))
    if len(theirs) == 2:
        usual = float(theirs[np.abs(theirs - mine).argmin()])
    return mine / (usual if abs(usual) > 1e-12 else 1e-12)
