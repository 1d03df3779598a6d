"""When a run moves on: which trigger of the phase table is due, and why.

A function of hard state alone, so that a restarted coordinator moves on exactly where the
one before would have.
"""

from __future__ import annotations

from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.core.seats import free_seats
from smalltalk_fed.core.silo_book import due, is_private, seats_left
from smalltalk_fed.core.state import HardState


def next_step(state: HardState) -> tuple[Trigger, str] | None:
    """The trigger that is due and its reason, or None."""
    match state.phase:
        case Phase.RECRUITING if is_private(state.manifest):
            if not free_seats(state):
                return Trigger.ENOUGH_NODES, f"all {len(state.seats)} seats are taken"
        case Phase.RECRUITING:
            needed = state.manifest.config.run.nodes_to_start
            if state.joined >= needed:
                return Trigger.ENOUGH_NODES, f"{state.joined} of {needed} nodes joined"
        case Phase.ROUTING | Phase.SHARDING if is_private(state.manifest) and not seats_left(state):
            return Trigger.FAIL, "every expert was withdrawn by its owner; nothing is left to train"
        case Phase.ROUTING if state.round == state.rounds_total and _done(state):
            return Trigger.ROUTERS_DONE, f"{state.rounds_total} rounds done"
        case Phase.ROUTING if is_private(state.manifest) and due(state) is None:
            last = state.moves[-1]
            why = f"{last.block} blocks of rounds done, {last.turn + 1} counts after the last"
            return Trigger.ROUTERS_DONE, why
        case Phase.SHARDING if state.divided and state.segments is None:
            return Trigger.SEGMENTS_MADE, "every silo divides its own text"
        case Phase.SHARDING if state.segments is not None:
            return Trigger.SEGMENTS_MADE, "every training sequence has its expert"
        case Phase.TRAINING if (state.divided or state.segments is not None) and _done(state):
            left = state.experts - len(state.withdrawn)
            return Trigger.EXPERTS_DONE, f"{left} experts trained"
        case Phase.EVALUATING if not (state.manifest.heldout_sequences or state.seats):
            return Trigger.EVALUATED, "the corpus has no held-out text"
        case Phase.EVALUATING if not state.open:
            return Trigger.EVALUATED, "every expert is evaluated"
    return None


def _done(state: HardState) -> bool:
    """Nothing is open, and no result waits for an audit."""
    return not state.open and not state.waits_for_audits
