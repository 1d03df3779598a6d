"""A private run's steps, and how its events change hard state; `HardState.apply` folds them.

A step is a pair (block, turn). Turn 0 of block x: every seat trains its routers for a block of
EM rounds, then counts what all routers win of its held-out text, then the prices move. After
the last block come turns 1, 2, ... with the finished routers: counts and prices alone. The
steps come in this order, one at a time; where a run stands follows from the last PricesMoved.
A silo all of whose experts were withdrawn has no part in them any more.

Rules: of old blocks nothing stays but the moves of the prices; routers of the last two blocks
and the counts of the last step do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import OF_A_SILO, UnitKey, UnitKind

if TYPE_CHECKING:
    from smalltalk_fed.core.state import HardState

BLOCKS_KEPT = 2


def is_private(manifest: RunManifest) -> bool:
    """Whether text stays on its nodes in this run."""
    return manifest.config.run.regime == "private"


def has_public_text(manifest: RunManifest) -> bool:
    """Whether a private run has a public corpus beside its silos' own texts."""
    return is_private(manifest) and manifest.train_sequences > 0


def block_count(manifest: RunManifest) -> int:
    """X: blocks of EM rounds between two exchanges of routers."""
    return -(-manifest.config.router.rounds // manifest.config.private.exchange_rounds)


def turn_count(manifest: RunManifest) -> int:
    """Counts after the last block."""
    return manifest.config.private.price_rounds


def remaining(state: HardState, seat: int) -> tuple[int, ...]:
    """Experts of a seat that are still part of the mixture."""
    own = seat_experts(state.manifest.config)[seat]
    return tuple(expert for expert in own if expert not in state.withdrawn)


def seats_left(state: HardState) -> list[int]:
    """Seats whose silos the run goes on with: an expert of theirs is part of the mixture."""
    seats = range(len(seat_experts(state.manifest.config)))
    return [seat for seat in seats if remaining(state, seat)]


def due(state: HardState) -> tuple[int, int] | None:
    """The step (block, turn) that is to be done; None when all are."""
    if not state.moves:
        return 1, 0
    last, blocks = state.moves[-1], block_count(state.manifest)
    if last.block < blocks:
        return last.block + 1, 0
    return (last.block, last.turn + 1) if last.turn + 1 < turn_count(state.manifest) else None


def prices(state: HardState) -> tuple[float, ...]:
    """The prices as they are now, by expert."""
    return state.moves[-1].prices if state.moves else (0.0,) * state.experts


def apply(state: HardState, event: silo_ev.SeatTaken | silo_ev.PricesMoved) -> None:
    """Fold one event in."""
    match event:
        case silo_ev.SeatTaken():
            state.seats[event.seat] = event
        case silo_ev.PricesMoved():
            for unit_id in over(state, event):
                state.finished.pop(unit_id, None)
            state.moves.append(event)
            state.anew()


def over(state: HardState, event: silo_ev.PricesMoved) -> list[str]:
    """Units whose results are needed no more once the prices have moved."""

    def needed(key: UnitKey) -> bool:
        if key.kind is UnitKind.SILO_BLOCK:
            return key.index > event.block - BLOCKS_KEPT
        return key.kind is not UnitKind.COUNT or (key.index, key.turn) >= _step(event)

    return [unit_id for unit_id in state.finished if not needed(UnitKey.parse(unit_id))]


def is_over(state: HardState, key: UnitKey) -> bool:
    """Whether a unit of routing is of a step that is behind the run."""
    if not state.moves or not 0 <= key.seat < len(seat_experts(state.manifest.config)):
        return False
    last = state.moves[-1]
    if key.kind is UnitKind.SILO_BLOCK:
        return 1 <= key.index <= last.block
    step = (key.index, key.turn)
    begun = key.turn == 0 or key.index == block_count(state.manifest)
    return key.kind is UnitKind.COUNT and key.index >= 1 and begun and step <= _step(last)


def routing_units(state: HardState) -> Iterator[UnitKey]:
    """Units of the step that is due, finished or not: counts come when all blocks are in."""
    step = due(state)
    if step is None:
        return
    block, turn = step
    seats = range(len(seat_experts(state.manifest.config)))
    blocks = [UnitKey(UnitKind.SILO_BLOCK, index=block, seat=seat) for seat in seats]
    if turn == 0:
        yield from blocks
        if not all(state.is_finished(key) for key in blocks):
            return
    for seat in seats:
        yield UnitKey(UnitKind.COUNT, index=block, seat=seat, turn=turn)


def units_of(state: HardState, phase: Phase) -> Iterator[UnitKey]:
    """Units of silos in `phase`, finished or not, in the order of work."""
    if phase is Phase.ROUTING:
        yield from routing_units(state)
    elif phase is Phase.EVALUATING:
        for seat in range(len(seat_experts(state.manifest.config))):
            yield UnitKey(UnitKind.EVALUATE_SILO, seat=seat)


def silo_unit_in(state: HardState, phase: Phase | None, key: UnitKey) -> bool:
    """Whether a unit of a silo is among those of `phase` that can be done now."""
    seats = len(seat_experts(state.manifest.config))
    if not (is_private(state.manifest) and key.kind in OF_A_SILO and 0 <= key.seat < seats):
        return False
    if key.kind is UnitKind.EVALUATE_SILO:
        return phase is Phase.EVALUATING
    return phase is Phase.ROUTING and key in routing_units(state)


def _step(event: silo_ev.PricesMoved) -> tuple[int, int]:
    return event.block, event.turn
