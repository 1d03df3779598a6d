"""What is journaled: every change of hard state, and nothing else.

An event is a frozen dataclass with the time it was decided at; those of silos and of experts
that leave are `silo_events`' part. `to_json`/`from_json` are the journal's encoding of all; a
kind that this version doesn't know is an error, never skipped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from smalltalk_fed.core.field_types import wrong_field
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.core.silo_events import ExpertWithdrawn, PricesMoved, SeatTaken
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import WorldError, shown


@dataclass(frozen=True)
class InviteMade:
    """An invitation exists."""

    at: float
    secret_sha256: str
    expires_at: float
    uses: int
    name: str


@dataclass(frozen=True)
class InviteCancelled:
    """An invitation is void."""

    at: float
    secret_sha256: str


@dataclass(frozen=True)
class NodeEnrolled:
    """A key was let in under an invitation."""

    at: float
    node_id: str
    name: str
    key_sha256: str
    secret_sha256: str


@dataclass(frozen=True)
class NodeJoined:
    """A node registered its signing key (hexadecimal) for this run."""

    at: float
    node_id: str
    signing_key: str


@dataclass(frozen=True)
class NodeRevoked:
    """A node is shut out."""

    at: float
    node_id: str
    reason: str


@dataclass(frozen=True)
class PhaseChanged:
    """The run moved along the phase table."""

    at: float
    trigger: Trigger
    phase: Phase
    reason: str


@dataclass(frozen=True)
class RoundAssigned:
    """The chunk of `round` is divided: one id list per expert."""

    at: float
    round: int
    shares: tuple[BlobRef, ...]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitAccepted:
    """A unit is finished by this node's result."""

    at: float
    unit_id: str
    node_id: str
    incarnation: int
    outputs: tuple[BlobRef, ...]
    figures: dict[str, float]
    signature: str
    seconds: float  # from lease to acceptance; 0 if it was not leased here


@dataclass(frozen=True)
class UnitRejected:
    """An accepted result turned out unusable; the unit is open again."""

    at: float
    unit_id: str
    reason: str


@dataclass(frozen=True)
class UnitStarted:
    """A long unit was given to this node, which has its local checkpoints from now on."""

    at: float
    unit_id: str
    node_id: str


@dataclass(frozen=True)
class WeightsCollected:
    """An unfinished expert's weights at `step` are here; whoever takes it over goes on there."""

    at: float
    unit_id: str
    node_id: str
    incarnation: int
    step: int
    from_step: int
    outputs: tuple[BlobRef, ...]
    figures: dict[str, float]
    signature: str


@dataclass(frozen=True)
class BlobLost:
    """A blob is damaged or gone; what made it is due again: a unit, or a round's division.

    `unit_id` empty and `round` 0: the segments.
    """

    at: float
    digest: str
    unit_id: str
    round: int
    reason: str


@dataclass(frozen=True)
class SegmentsMade:
    """Every training sequence belongs to one expert: one id list per expert."""

    at: float
    segments: tuple[BlobRef, ...]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditOpened:
    """A result waits for one more opinion before it counts; `sample` says on which sequences.

    `redo`: the round is trained again for it.
    """

    at: float
    unit_id: str  # of the unit whose result is looked at
    sample: int
    reason: str
    redo: bool = False


@dataclass(frozen=True)
class AuditSettled:
    """A result was found good or bad, or nobody could look at it (waived)."""

    at: float
    unit_id: str
    verdict: str  # good, bad, waived
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()  # ids of the opinions that were found wrong


@dataclass(frozen=True)
class NodeQuarantined:
    """A node gave a wrong result or opinion: it gets no more work, and `undone` is done again.

    `tainted`: what had been made of its results before, and stays.
    """

    at: float
    node_id: str
    reason: str
    undone: tuple[str, ...] = ()
    tainted: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeReadmitted:
    """The operator lets a quarantined node work again, as a newcomer."""

    at: float
    node_id: str


Event = (
    InviteMade
    | InviteCancelled
    | NodeEnrolled
    | NodeJoined
    | NodeRevoked
    | PhaseChanged
    | RoundAssigned
    | UnitAccepted
    | UnitRejected
    | UnitStarted
    | WeightsCollected
    | BlobLost
    | SegmentsMade
    | AuditOpened
    | AuditSettled
    | NodeQuarantined
    | NodeReadmitted
    | SeatTaken
    | PricesMoved
    | ExpertWithdrawn
)

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        InviteMade,
        InviteCancelled,
        NodeEnrolled,
        NodeJoined,
        NodeRevoked,
        PhaseChanged,
        RoundAssigned,
        UnitAccepted,
        UnitRejected,
        UnitStarted,
        WeightsCollected,
        BlobLost,
        SegmentsMade,
        AuditOpened,
        AuditSettled,
        NodeQuarantined,
        NodeReadmitted,
        SeatTaken,
        PricesMoved,
        ExpertWithdrawn,
    )
}
_BLOB_FIELDS = ("shares", "outputs", "segments")
_LIST_FIELDS = ("wrong", "undone", "tainted", "prices", "blobs")


def to_json(event: Event) -> tuple[str, str]:
    """Kind and body of a journal row."""
    return type(event).__name__, json.dumps(asdict(event), sort_keys=True, allow_nan=False)


def from_json(kind: str, body: str) -> Event:
    """The event of a journal row.

    Raises:
        WorldError: a kind or field that this version doesn't know.
    """
    try:
        fields: dict[str, Any] = json.loads(body)
        for name in _BLOB_FIELDS:
            if name in fields:
                fields[name] = tuple(BlobRef(**ref) for ref in fields[name])
        for name in _LIST_FIELDS:
            if name in fields:
                fields[name] = tuple(fields[name])
        if kind == "PhaseChanged":
            fields["trigger"], fields["phase"] = Trigger(fields["trigger"]), Phase(fields["phase"])
        event: Event = _KINDS[kind](**fields)
        if odd := wrong_field(event):
            raise ValueError(f"its '{odd}' is not what it must be")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise WorldError(
            f"the journal has an event '{shown(kind)}' that this version can't read "
            f"({shown(str(error), 200)}); it was written by a newer version or is damaged"
        ) from None
    return event


def from_row(kind: bytes, body: bytes) -> Event:
    """`from_json` of the bytes that a journal's file holds. Raises WorldError."""
    try:
        return from_json(kind.decode(), body.decode())
    except UnicodeDecodeError:
        raise WorldError("the journal has an event that is no text; it is damaged") from None
