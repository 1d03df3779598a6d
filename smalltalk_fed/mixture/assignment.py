"""Which expert gets which sequence of a chunk: balanced in training, free at inference.

The E-step of equation 8 of arXiv 2410.03529 under capacities: every expert gets exactly its
share of the chunk. Three methods, by what they lose against the free argmax:

`paper`    visit by descending best score, each to its best expert with room (section 2.3)
`regret`   the same, by descending best minus second best
`optimal`  the largest total score there is under these capacities (a transport problem)

Rules: rows are the sequences in id order; ties break by row, then expert id; the result is a
function of scores and capacities alone. Scores are float32, finite, larger is better; what
doesn't fit together is a ValueError that names it. Nothing here learns or samples; the order of
visits is in `greedy`, the exact solution in `transport`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smalltalk_fed.mixture import greedy, transport
from smalltalk_fed.mixture.permutation import Permutation

Method = Literal["paper", "regret", "optimal"]

_LARGEST_NATS = 1e30  # differences of scores stay within float32
_BLOCK = 1 << 14  # rows looked at at a time: temporaries stay in the cache


@dataclass(frozen=True)
class AssignmentStats:
    """How even an assignment is, and what that cost."""

    load: tuple[int, ...]  # sequences of each expert
    displaced_fraction: float  # sequences whose score is below their best expert's
    excess_nats: float  # mean over sequences of best score minus assigned score


@dataclass(frozen=True, eq=False)
class Assignment:
    """An expert for each sequence of a chunk.

    `prices_E` (nats, float64, mean zero) is the dual of the capacities for `optimal`:
    argmax(score - price) gives `expert_N` again wherever it is unique, and a node that knows
    the prices can assign sequences of its own. The greedy methods have no prices: zeros.
    """

    expert_N: NDArray[np.int32]
    prices_E: NDArray[np.float64]
    stats: AssignmentStats


def equal_capacity(n: int, experts: int) -> NDArray[np.int64]:
    """Share n sequences equally: int64[E], remainder to the lowest expert ids.

    Raises ValueError without experts, or with a negative n.
    """
    if n < 0 or experts < 1:
        raise ValueError(f"can't share {n} sequences among {experts} experts")
    return np.array([n // experts + (e < n % experts) for e in range(experts)], dtype=np.int64)


def weighted_capacity(n: int, weights: ArrayLike) -> NDArray[np.int64]:
    """Share n sequences by weights: int64[E] that sums to n, by largest remainder.

    Equal remainders go to the lowest expert id. Raises ValueError for weights that aren't
    finite and positive in sum, or negative ones.
    """
    weights_E = np.asarray(weights, dtype=np.float64)
    if weights_E.ndim != 1 or n < 0:
        raise ValueError(f"can't share {n} sequences by weights of shape {weights_E.shape}")
    total = float(weights_E.sum())
    if not np.isfinite(total) or (weights_E < 0).any() or total <= 0:
        raise ValueError("capacity weights must be finite, not negative, and not all zero")
    exact_E = n * (weights_E / total)
    capacity_E = np.floor(exact_E).astype(np.int64)
    left = n - int(capacity_E.sum())
    by_remainder = np.argsort(capacity_E - exact_E, kind="stable")
    capacity_E[by_remainder[:left]] += 1
    return capacity_E


def random_assignment(n: int, capacity_E: ArrayLike, key: bytes) -> NDArray[np.int32]:
    """Assign at random under exact capacities, int32[n]: the first round's E-step.

    Raises ValueError for capacities that don't sum to n.
    """
    capacity = _capacity(n, None, capacity_E)
    in_order_N = np.repeat(np.arange(len(capacity), dtype=np.int32), capacity)
    return in_order_N[Permutation(n, key).range(0, n)]


def assign(
    scores_NxE: NDArray[np.float32], capacity_E: ArrayLike, method: Method = "optimal"
) -> Assignment:
    """Assign each of N sequences to one of E experts under exact capacities.

    Needs, next to the scores, about 10 bytes a sequence and a few MB (as much again as the
    scores if they aren't row-major, or if an expert's capacity is zero). Zero capacity closes
    an expert: it gets nothing, and has no part in the visiting order.
    Raises ValueError for scores that aren't float32[N, E] or finite, capacities that aren't E
    whole numbers from 0 summing to N, or an unknown method.
    """
    scores = _scores(scores_NxE)
    n, experts = scores.shape
    capacity = _capacity(n, experts, capacity_E)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    open_experts = np.flatnonzero(capacity > 0)
    some_closed = 0 < len(open_experts) < experts
    open_scores = np.ascontiguousarray(scores[:, open_experts]) if some_closed else scores
    open_capacity = capacity[open_experts] if some_closed else capacity
    prices_E = np.zeros(experts, dtype=np.float64)
    if n == 0:
        expert_N = np.zeros(0, dtype=np.int32)
    elif method == "optimal":
        expert_N, open_prices = transport.solve(open_scores, open_capacity)
        prices_E[open_experts] = open_prices
    else:
        order = greedy.paper_order if method == "paper" else greedy.regret_order
        expert_N = greedy.fill(open_scores, open_capacity, order(open_scores))
    if some_closed:
        expert_N = open_experts.astype(np.int32)[expert_N]
        if method == "optimal":
            prices_E = _price_closed(scores, expert_N, prices_E, capacity > 0)
    return Assignment(expert_N, prices_E, _stats(scores, expert_N))


def route(scores_NxE: NDArray[np.floating], prices_E: ArrayLike | None = None) -> NDArray[np.int32]:
    """Return each sequence's expert at inference, int32[N]: argmax(score - price).

    No balancing (equation 5 of arXiv 2410.03529); without prices the prior is uniform. Ties go
    to the lowest expert id. Raises ValueError for NaN, or prices that aren't E numbers.
    """
    scores = np.asarray(scores_NxE)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores must be sequences by experts, not shape {scores.shape}")
    prices = np.zeros(scores.shape[1]) if prices_E is None else np.asarray(prices_E, np.float64)
    if prices.shape != scores.shape[1:]:
        raise ValueError(f"{scores.shape[1]} experts need as many prices, not {prices.shape}")
    expert_N = np.empty(len(scores), dtype=np.int32)
    for start in range(0, len(scores), _BLOCK):
        value = scores[start : start + _BLOCK] - prices
        if np.isnan(value).any():
            raise ValueError("scores and prices must be numbers, but some are NaN")
        expert_N[start : start + _BLOCK] = value.argmax(axis=1)
    return expert_N


def dual_ascent(
    prices_E: ArrayLike, counts_E: ArrayLike, share_E: ArrayLike, step: float
) -> NDArray[np.float64]:
    """Move prices towards shares by the counts of what every expert won, float64[E].

    price_e += step * (count_e / N - share_e), N being all counts together. Counts are all that
    a coordinator learns of private text. Without counts, prices stay.
    Raises ValueError when the three don't have the same length, or counts are negative.
    """
    prices, counts, share = (np.asarray(x, dtype=np.float64) for x in (prices_E, counts_E, share_E))
    if not prices.shape == counts.shape == share.shape or prices.ndim != 1:
        raise ValueError(
            f"prices, counts and shares are one per expert, not of shapes "
            f"{prices.shape}, {counts.shape} and {share.shape}"
        )
    if not (counts >= 0).all():
        raise ValueError("counts must not be negative")
    total = counts.sum()
    return prices + step * (counts / total - share) if total > 0 else prices.copy()


def _scores(scores_NxE: NDArray[np.float32]) -> NDArray[np.float32]:
    scores = np.asarray(scores_NxE)
    if scores.ndim != 2 or scores.shape[1] == 0 or scores.dtype != np.float32:
        raise ValueError(
            f"scores must be float32, sequences by experts, not {scores.dtype} {scores.shape}"
        )
    scores = np.ascontiguousarray(scores)
    for start in range(0, len(scores), _BLOCK):
        good = np.abs(scores[start : start + _BLOCK]) <= _LARGEST_NATS  # false for NaN
        if not good.all():
            row, e = np.argwhere(~good)[0]
            raise ValueError(
                f"scores must be finite and below {_LARGEST_NATS:g}, but expert {e}'s score of "
                f"row {start + row} is {scores[start + row, e]}"
            )
    return scores


def _capacity(n: int, experts: int | None, capacity_E: ArrayLike) -> NDArray[np.int64]:
    capacity = np.asarray(capacity_E)
    if capacity.ndim != 1 or capacity.dtype.kind not in "iu":
        raise ValueError(f"capacities are one whole number an expert, not {capacity_E!r}")
    if experts is not None and len(capacity) != experts:
        raise ValueError(f"scores have {experts} experts, but capacities {len(capacity)}")
    if capacity.size and int(capacity.min()) < 0:
        raise ValueError("capacities must not be negative")
    if int(capacity.sum()) != n:
        raise ValueError(f"capacities sum to {int(capacity.sum())}, but there are {n} sequences")
    return capacity.astype(np.int64)


def _price_closed(
    scores: NDArray[np.float32],
    expert_N: NDArray[np.int32],
    prices_E: NDArray[np.float64],
    open_E: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Price each closed expert as low as goes without drawing a sequence, mean zero again."""
    closed = np.flatnonzero(~open_E)
    highest = np.full(len(closed), -np.inf)
    for start in range(0, len(scores), _BLOCK):
        block = scores[start : start + _BLOCK].astype(np.float64)
        mine = expert_N[start : start + _BLOCK]
        value = block[np.arange(len(block)), mine] - prices_E[mine]
        np.maximum(highest, (block[:, closed] - value[:, None]).max(axis=0), out=highest)
    prices = prices_E.copy()
    prices[closed] = highest
    return prices - prices.mean()


def _stats(scores: NDArray[np.float32], expert_N: NDArray[np.int32]) -> AssignmentStats:
    n, experts = scores.shape
    displaced, excess = 0, 0.0
    for start in range(0, n, _BLOCK):
        block = scores[start : start + _BLOCK]
        mine = expert_N[start : start + _BLOCK]
        lost = block.max(axis=1).astype(np.float64) - block[np.arange(len(block)), mine]
        displaced += int(np.count_nonzero(lost))
        excess += float(lost.sum())
    load = np.bincount(expert_N, minlength=experts)
    return AssignmentStats(tuple(load.tolist()), displaced / max(n, 1), excess / max(n, 1))
