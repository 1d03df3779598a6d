"""The phases of a run as a table; code, status and docs/protocol.md all use this one.

Rules: a transition that is not in the table can't happen (`next_phase` raises). What must
be true for a trigger to be pulled is the coordinator's part.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from smalltalk_fed.errors import OurError


class Phase(StrEnum):
    """Where a run stands."""

    RECRUITING = "recruiting"
    ROUTING = "routing"
    SHARDING = "sharding"
    TRAINING = "training"
    EVALUATING = "evaluating"
    FINISHED = "finished"
    PAUSED = "paused"
    FAILED = "failed"


class Trigger(StrEnum):
    """What moves a run from one phase to the next."""

    ENOUGH_NODES = "enough nodes joined"
    ROUTERS_DONE = "every router finished its last round"
    SEGMENTS_MADE = "every sequence has its expert"
    EXPERTS_DONE = "every expert is trained"
    EVALUATED = "every expert is evaluated on held-out text"
    PAUSE = "the operator pauses"  # or something has to be mended first; as journals have it
    RESUME = "the operator resumes"
    FAIL = "nothing is left to train"


@dataclass(frozen=True)
class Transition:
    """One arrow of the diagram."""

    source: Phase
    trigger: Trigger
    target: Phase | None  # None: back to where the pause began


WORKING = (Phase.ROUTING, Phase.SHARDING, Phase.TRAINING, Phase.EVALUATING)

TRANSITIONS: tuple[Transition, ...] = (
    Transition(Phase.RECRUITING, Trigger.ENOUGH_NODES, Phase.ROUTING),
    Transition(Phase.ROUTING, Trigger.ROUTERS_DONE, Phase.SHARDING),
    Transition(Phase.SHARDING, Trigger.SEGMENTS_MADE, Phase.TRAINING),
    Transition(Phase.TRAINING, Trigger.EXPERTS_DONE, Phase.EVALUATING),
    Transition(Phase.EVALUATING, Trigger.EVALUATED, Phase.FINISHED),
    *(Transition(p, Trigger.PAUSE, Phase.PAUSED) for p in (Phase.RECRUITING, *WORKING)),
    Transition(Phase.PAUSED, Trigger.RESUME, None),
    *(Transition(p, Trigger.FAIL, Phase.FAILED) for p in (Phase.ROUTING, Phase.SHARDING)),
)

_TABLE = {(t.source, t.trigger): t.target for t in TRANSITIONS}


def allowed(phase: Phase, trigger: Trigger) -> bool:
    """Whether the table has an arrow for `trigger` out of `phase`."""
    return (phase, trigger) in _TABLE


def next_phase(phase: Phase, trigger: Trigger, paused_from: Phase | None = None) -> Phase:
    """The phase after `trigger`.

    Raises:
        OurError: the table has no such arrow.
    """
    if not allowed(phase, trigger):
        raise OurError(f"phase {phase} has no transition for '{trigger}'; this is a bug")
    target = _TABLE[phase, trigger]
    if target is None:
        if paused_from is None:
            raise OurError("a paused run does not know where it was paused; this is a bug")
        return paused_from
    return target


def mermaid() -> str:
    """The table as a Mermaid state diagram; docs/protocol.md holds it and a test compares."""
    lines = ["stateDiagram-v2", "    [*] --> recruiting"]
    for t in TRANSITIONS:
        if t.trigger not in (Trigger.PAUSE, Trigger.FAIL, Trigger.RESUME):
            lines.append(f"    {t.source} --> {t.target}: {t.trigger}")
    lines.append("    finished --> [*]")
    pausable = ", ".join(t.source for t in TRANSITIONS if t.trigger is Trigger.PAUSE)
    lines.append(
        f"    note right of paused: {Trigger.PAUSE}, or something has to be mended, in {pausable}; "
        "resume goes back there"
    )
    failing = ", ".join(t.source for t in TRANSITIONS if t.trigger is Trigger.FAIL)
    lines.append(f"    note right of failed: {Trigger.FAIL}, in {failing}")
    return "\n".join(lines)
