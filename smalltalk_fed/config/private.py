"""Silos: runs whose text stays where it is, `[private]` in run.toml.

A run of the regime `private` has *seats*; a silo is a node with text of its own that sits in
one. Seat k hosts the experts of one contiguous range of ids, and only its silo trains them.
What is counted, and how the prices follow, is `mixture.silo_prices`' part.

Rules: the section has no effect in the regime `shared`; values only, nothing is read.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from smalltalk_fed.config.section import Section

if TYPE_CHECKING:
    from smalltalk_fed.config.run import RunConfig

Share = Literal["never", "operator", "public"]  # who may have an expert's weights

MAX_SEATS = 1024
MAX_SEAT_EXPERTS = 64


class PrivateSection(Section):
    """[private]: silos whose text never leaves; only in the regime `private`."""

    experts_of: list[int] = Field(
        default=[],
        max_length=MAX_SEATS,
        description="Experts that each seat hosts, in the order of their ids; none given: one "
        "expert a seat.",
    )
    exchange_rounds: int = Field(
        default=4,
        ge=1,
        le=100_000,
        description="EM rounds between two exchanges of routers, which are this regime's largest "
        "traffic.",
    )
    count_floor: int = Field(
        default=10,
        ge=1,
        le=1 << 20,
        description="Counts below this are withheld, larger ones rounded down to a multiple of it, "
        "and no sum over fewer held-out sequences leaves a silo.",
    )
    price_rounds: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="Counts and moves of the prices with the finished routers.",
    )
    price_step: float = Field(
        default=20.0,
        ge=0,
        le=1e6,
        description="Nats that a price moves for each unit of error in its expert's share of the "
        "held-out text.",
    )
    steps: Literal["proportional", "equal"] = Field(
        default="proportional",
        description="Experts' steps: in proportion to their share of all training text, with "
        "`expert.steps` as the mean, or all the same.",
    )
    public_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Part of each expert's training sequences that comes from the run's public "
        "text; 0: there is none.",
    )
    train_sequences_min: int = Field(
        default=32, ge=1, description="Training sequences that a silo must have to take a seat."
    )
    heldout_sequences_min: int = Field(
        default=10, ge=0, description="Held-out sequences that a silo must have to take a seat."
    )


def seat_experts(config: RunConfig) -> tuple[range, ...]:
    """The experts of each seat: contiguous ranges of ids that cover 0..E-1 in order."""
    counts = config.private.experts_of or [1] * config.run.experts
    return tuple(range(*ends) for ends in pairwise(accumulate(counts, initial=0)))


def seat_of(config: RunConfig, expert: int) -> int:
    """The seat that hosts `expert`.

    Raises ValueError for an expert that the run doesn't have.
    """
    for seat, experts in enumerate(seat_experts(config)):
        if expert in experts:
            return seat
    raise ValueError(f"the run has no expert {expert}")


def problem(config: RunConfig) -> str:
    """What is wrong between `[private]` and the other tables, or nothing."""
    experts, counts = config.run.experts, config.private.experts_of
    if config.run.regime != "private":
        return ""
    if any(count < 1 for count in counts):
        return "private.experts_of has a seat without experts; give each at least one"
    if max(counts, default=1) > MAX_SEAT_EXPERTS:
        return f"private.experts_of has a seat with more than {MAX_SEAT_EXPERTS} experts"
    if config.expert.collect_every_steps:
        return (
            "expert.collect can't be 'every N steps' where text is private: nobody else could go "
            "on with an expert; say 'final' or 'never'"
        )
    if counts and sum(counts) != experts:
        return (
            f"private.experts_of has {sum(counts)} experts in all, but run.experts is {experts}; "
            "make them equal"
        )
    if config.assignment.capacity != "equal":
        return (
            "assignment.capacity must be 'equal' where text is private: each silo's experts "
            "divide its text evenly"
        )
    if config.expert.init == "seed":
        return (
            "expert.init can't be 'seed' where text is private: nobody has a sample of it all; "
            "give a folder with a checkpoint, or 'fresh'"
        )
    return ""
