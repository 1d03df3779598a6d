"""How an expert's withdrawal changes hard state, and whose an expert is. Only `apply` folds.

Rules: what is left of a withdrawn expert is who had it, when and why it left. Its results are
forgotten, its units count as over: nobody is asked for them, and what still comes of one is
taken as said again. What other units were made of while it was there stays as it is. A silo all
of whose experts left has no units: its counts and sums are forgotten with them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from smalltalk_fed.config.private import seat_experts, seat_of
from smalltalk_fed.core import audit_book
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.silo_book import is_private, remaining
from smalltalk_fed.core.units import OF_A_SILO, UnitKey, UnitKind

if TYPE_CHECKING:
    from smalltalk_fed.core.state import HardState

OF_AN_EXPERT = (UnitKind.TRAIN_EXPERT, UnitKind.EVALUATE)


def withdrawn(state: HardState, event: silo_ev.ExpertWithdrawn) -> None:
    """The expert is out of the mixture."""
    state.withdrawn[event.expert] = event
    for kind in OF_AN_EXPERT:
        unit_id = UnitKey(kind, event.expert).unit_id
        audit_book.forget(state, unit_id)
        for book in (
            state.finished,
            state.started,
            state.collected,
            state.lineage,
            state.contributors,
            state.waived,
        ):
            book.pop(unit_id, None)
    for unit_id in of_silo_that_left(state, event.expert):
        del state.finished[unit_id]
    state.anew()


def is_over(state: HardState, key: UnitKey) -> bool:
    """Whether the unit is of an expert that was withdrawn, or of a silo that has none left."""
    if not state.withdrawn:
        return False
    if key.kind in OF_A_SILO and is_private(state.manifest):
        seats = len(seat_experts(state.manifest.config))
        return 0 <= key.seat < seats and not remaining(state, key.seat)
    return key.kind in OF_AN_EXPERT and key.expert in state.withdrawn


def of_silo_that_left(
    state: HardState, expert: int, leaving: Collection[int] = ()
) -> tuple[str, ...]:
    """Finished units about a silo's held-out text, if with `leaving` none of its experts is left.

    Its routers' blocks stay on record, as rounds do; their blobs are `retention`'s part.
    """
    if not is_private(state.manifest):
        return ()
    seat = seat_of(state.manifest.config, expert)
    if set(remaining(state, seat)) - set(leaving):
        return ()
    keys = (UnitKey.parse(unit_id) for unit_id in state.finished)
    about = (UnitKind.COUNT, UnitKind.EVALUATE_SILO)
    return tuple(key.unit_id for key in keys if key.kind in about and key.seat == seat)


def owner(state: HardState, expert: int) -> str:
    """The node whose expert it is: who trained it, or has begun to; empty if it is nobody's yet.

    In a private run, who has the text."""
    if expert in state.withdrawn:
        return state.withdrawn[expert].node_id
    if is_private(state.manifest):
        seat = state.seats.get(seat_of(state.manifest.config, expert))
        return seat.node_id if seat else ""
    unit_id = UnitKey(UnitKind.TRAIN_EXPERT, expert).unit_id
    known = state.finished.get(unit_id) or state.started.get(unit_id)
    return known.node_id if known else ""


def serves(state: HardState, node_id: str) -> frozenset[int]:
    """Experts that the node may answer prompts with: those that it trained, and were accepted."""
    node = state.nodes.get(node_id)
    if node is None or not node.takes_part:
        return frozenset()
    found = set()
    for expert in range(state.experts):
        accepted = state.finished.get(UnitKey(UnitKind.TRAIN_EXPERT, expert).unit_id)
        if accepted is not None and accepted.node_id == node_id:
            found.add(expert)
    return frozenset(found)
