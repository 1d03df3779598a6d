"""Who sits where in a private run, and what the owners of texts and experts allow.

Rules: a seat is one node's, with the text that it had when it took it: another text would be
another silo. A node takes one seat; it may say which. Before routing begins, the seat of a node
that was shut out is free again; later it is not, since its routers are part of the run. Who may
have an expert's weights is the narrower of what the run asks for and what the owner says.
"""

from __future__ import annotations

from smalltalk_fed.config.private import Share, seat_experts, seat_of
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.silo_book import is_private, remaining
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import OF_A_SILO, UnitKey, UnitKind
from smalltalk_fed.errors import Malformed, Refused

SHARES: tuple[Share, ...] = ("never", "operator", "public")  # ever more


def claim(state: HardState, message: msg.Join, now: float) -> silo_ev.SeatTaken | None:
    """The event with which a node that joins takes a seat; None if it changes nothing.

    Raises:
        Refused: no such seat is free, the text is too small, or not that of before.
        Malformed: `share` is none of the three.
    """
    if message.share not in SHARES:
        raise Malformed(f"an expert's weights are shared {', '.join(SHARES)}; nothing else")
    has = message.capabilities
    text = (has.train_sequences, has.heldout_sequences, has.corpus_digest)
    before = seat_taken_by(state, message.node_id)
    if before is None:
        seat = _free_seat(state, message.seat)
        _check_size(state, seat, has)
        return silo_ev.SeatTaken(now, seat, message.node_id, *text, message.share)
    if message.seat not in (-1, before.seat):
        raise Refused(f"this node has seat {before.seat} already; it can't change to another")
    if text != (before.train_sequences, before.heldout_sequences, before.corpus_digest):
        raise Refused(
            f"this node's text is not the one that it took seat {before.seat} with "
            f"({before.train_sequences} and {before.heldout_sequences} sequences): name that one "
            "with --corpus"
        )
    if message.share == before.share:
        return None
    return silo_ev.SeatTaken(now, before.seat, message.node_id, *text, message.share)


def seat_taken_by(state: HardState, node_id: str) -> silo_ev.SeatTaken | None:
    """The seat that a node has."""
    return next((taken for taken in state.seats.values() if taken.node_id == node_id), None)


def free_seats(state: HardState) -> list[int]:
    """Seats that a newcomer can take."""
    return [
        seat
        for seat in range(len(seat_experts(state.manifest.config)))
        if seat not in state.seats or _is_vacant(state, state.seats[seat])
    ]


def waiting_for(state: HardState, present: set[str]) -> list[str]:
    """Nodes that sit in a seat and are not here, by name: the run can't go on without them.

    Whose experts were all withdrawn is not waited for.
    """
    taken = (seat for seat in state.seats.values() if remaining(state, seat.seat))
    nodes = (state.nodes[each.node_id] for each in taken)
    return [node.name for node in nodes if node.node_id not in present]


def node_of(state: HardState, key: UnitKey) -> str | None:
    """The one node that can do a unit of a private run."""
    seat = key.seat if key.kind in OF_A_SILO else seat_of(state.manifest.config, key.expert)
    taken = state.seats.get(seat)
    return taken.node_id if taken else None


def share_of(state: HardState, expert: int) -> Share:
    """Who may have this expert's weights."""
    taken = state.seats.get(seat_of(state.manifest.config, expert))
    asked = state.manifest.config.expert.share
    allowed = taken.share if taken else "never"
    return next(share for share in SHARES if share in (asked, allowed))


def stays(state: HardState, key: UnitKey) -> bool:
    """Whether the expert that a unit trains stays where it is, whatever the run collects."""
    private = is_private(state.manifest) and key.kind is UnitKind.TRAIN_EXPERT
    return private and 0 <= key.expert < state.experts and share_of(state, key.expert) == "never"


def _free_seat(state: HardState, wanted: int) -> int:
    free = free_seats(state)
    if wanted < 0:
        if not free:
            raise Refused(f"all {len(state.seats)} seats of the run are taken")
        return free[0]
    if wanted not in free:
        known = wanted in state.seats
        raise Refused(f"seat {wanted} {'is taken' if known else 'is not one of this run'}")
    return wanted


def _is_vacant(state: HardState, taken: silo_ev.SeatTaken) -> bool:
    return state.phase is Phase.RECRUITING and not state.nodes[taken.node_id].takes_part


def _check_size(state: HardState, seat: int, has: msg.Capabilities) -> None:
    private = state.manifest.config.private
    experts = len(seat_experts(state.manifest.config)[seat])
    needed = max(private.train_sequences_min, experts)
    if has.train_sequences < needed or has.heldout_sequences < private.heldout_sequences_min:
        raise Refused(
            f"this node has {has.train_sequences} training and {has.heldout_sequences} held-out "
            f"sequences; seat {seat} needs {needed} and {private.heldout_sequences_min}: bring "
            "more text"
        )
