"""What is journaled of silos and of owners: seats, prices, experts that leave.

Events as those of `events`, whose encoding has them too. Rules: nothing here tells of a text
more than how many sequences it has, and of an owner more than its word.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SeatTaken:
    """A node brings the text of this seat, or its owner says anew who may have its experts.

    `corpus_digest` tells whether the text is the same as before, and nothing else of it.
    `share`: never, operator, public.
    """

    at: float
    seat: int
    node_id: str
    train_sequences: int
    heldout_sequences: int
    corpus_digest: str
    share: str


@dataclass(frozen=True)
class PricesMoved:
    """All silos counted after `block` for the `turn`-th time; these are the prices now."""

    at: float
    block: int
    turn: int
    prices: tuple[float, ...]  # nats, by expert
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpertWithdrawn:
    """An expert and its router leave the mixture for good; its units are asked for no more.

    `blobs`: digests of all that was kept of both, and must not be kept any longer than others
    need it.
    """

    at: float
    expert: int
    node_id: str  # whose it was; empty if it was nobody's yet
    by: str  # owner, operator
    reason: str
    blobs: tuple[str, ...] = ()
