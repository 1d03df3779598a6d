"""The computations on blobs that the core asks its host for, and what comes of them.

Frozen, as all messages. Rules: a job names all that it is made from by digest, so that whoever
does it needs the blobs and the manifest and nothing of the core's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smalltalk_fed.core.units import BlobRef, Unit


@dataclass(frozen=True)
class AssignJob:
    """Divide the chunk of `round`: at random for round 1, then by one score block a router.

    `checked`: experts whose block was audited, so that looking odd is no reason to stop.
    """

    job_id: str
    round: int
    scores: tuple[BlobRef, ...] = ()
    weights: tuple[float, ...] = ()  # of the experts' shares; empty: as configured
    checked: tuple[int, ...] = ()


@dataclass(frozen=True)
class SegmentsJob:
    """Collect what the shards said into one id list per expert."""

    job_id: str
    shards: tuple[BlobRef, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class JudgeJob:
    """Hold a result against other nodes' opinions of it.

    `target`: the unit with the inputs that it was handed out with; `outputs`, `figures`: of
    its result; `opinions`: unit id of the audit -> what it brought, in the order of arrival.
    `peers`: figures of the settled audits of the other experts, by expert. `redo_from`: number
    of the first opinion for which the round was trained again; 0: none.
    """

    job_id: str
    target: Unit
    outputs: tuple[BlobRef, ...]
    figures: dict[str, float]
    sample: int
    opinions: tuple[tuple[str, BlobRef], ...]
    peers: dict[int, dict[str, float]] = field(default_factory=dict)
    redo_from: int = 0


@dataclass(frozen=True)
class PricesJob:
    """Move the prices of a private run by what its silos counted.

    `seats`: of the silos that are left, `experts`: those of each that are. `counts`, `train`,
    `heldout`: in the same order, the rows and how many sequences each silo has.
    """

    job_id: str
    block: int
    turn: int
    seats: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]
    counts: tuple[BlobRef, ...]
    train: tuple[int, ...]
    heldout: tuple[int, ...]
    prices: tuple[float, ...]


Job = AssignJob | SegmentsJob | JudgeJob | PricesJob


@dataclass(frozen=True)
class JobFinished:
    """A job's outputs are in the blob store."""

    job_id: str
    outputs: tuple[BlobRef, ...]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suspects:
    """An `AssignJob` found score blocks that look odd: unit id -> why. Nothing was divided."""

    job_id: str
    units: dict[str, str]


@dataclass(frozen=True)
class Judged:
    """What a `JudgeJob` found. `verdict`: good, bad, or open (one more opinion is needed).

    `wrong`: ids of the opinions that don't fit what was found. `redo`: only training the round
    again can tell.
    """

    job_id: str
    verdict: str
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    redo: bool = False


@dataclass(frozen=True)
class JobFailed:
    """A job could not be done; `culprit` is the unit whose result was bad, if one was."""

    job_id: str
    reason: str
    culprit: str = ""


Outcome = JobFinished | JobFailed | Suspects | Judged
