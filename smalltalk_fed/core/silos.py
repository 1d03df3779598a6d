"""What a private run's state asks for: units with their inputs, jobs, blobs that are needed.

Functions of hard state alone, as `handout`, `jobs` and `retention` are for shared text, which
call these where a run is private. Which step is due is `silo_book`'s part, who sits where
`seats`'. No ids and no scores are ever asked for, only routers, counts, sums, and an expert's
weights where its owner allows it.
"""

from __future__ import annotations

from dataclasses import replace

from smalltalk_fed.config.private import seat_experts, seat_of
from smalltalk_fed.core import events as ev
from smalltalk_fed.core.messages import PricesJob
from smalltalk_fed.core.outputs import named, output
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.seats import share_of
from smalltalk_fed.core.silo_book import block_count, due, over, prices
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import OurError, Refused


def routers(state: HardState, block: int) -> tuple[BlobRef, ...]:
    """All routers as they are after `block`, by expert."""
    return tuple(router(state, expert, block) for expert in range(state.experts))


def router(state: HardState, expert: int, block: int) -> BlobRef:
    """One router after `block`, called `router-E`."""
    seat = seat_of(state.manifest.config, expert)
    key = UnitKey(UnitKind.SILO_BLOCK, index=block, seat=seat)
    return output(state, key, f"router-{expert}")


def unit(state: HardState, key: UnitKey) -> Unit:
    """A unit of a private run with its inputs, as it is handed out.

    Raises:
        OurError: the run has no such unit.
        Refused: nobody asks for it any more.
    """
    last = block_count(state.manifest)
    match key.kind:
        case UnitKind.SILO_BLOCK:
            own = seat_experts(state.manifest.config)[key.seat]
            before = key.index - 1
            return Unit(key, tuple(router(state, e, before) for e in own) if before else ())
        case UnitKind.COUNT:
            if not state.in_phase(key):
                raise Refused(f"{key.unit_id} is asked for no more")
            return Unit(key, routers(state, key.index), prices=prices(state))
        case UnitKind.TRAIN_EXPERT:
            own = seat_experts(state.manifest.config)[seat_of(state.manifest.config, key.expert)]
            inputs = tuple(router(state, e, last) for e in own)
            if state.segments is not None:
                inputs += (named("segment", state.segments.segments[key.expert]),)
            return Unit(key, inputs, weights=text_shares(state))
        case UnitKind.SHARD:
            return Unit(key, routers(state, last))
        case UnitKind.EVALUATE_SILO:
            inputs = (*routers(state, last), *public_experts(state, key.seat))
            return Unit(key, inputs, prices=prices(state))
    raise OurError(f"{key.unit_id} is no unit of a private run; this is a bug")


def public_experts(state: HardState, seat: int) -> tuple[BlobRef, ...]:
    """Weights of other seats' experts that everybody may have, called `weights-E`."""
    own = seat_experts(state.manifest.config)[seat]
    found = []
    for expert in range(state.experts):
        if expert not in own and share_of(state, expert) == "public":
            key = UnitKey(UnitKind.TRAIN_EXPERT, expert)
            accepted = state.finished.get(key.unit_id)
            if accepted is not None and accepted.outputs:
                found.append(named(f"weights-{expert}", output(state, key, "weights")))
    return tuple(found)


def text_shares(state: HardState) -> tuple[float, ...]:
    """Each expert's part of all training text: an even part of its own silo's; they add up to 1."""
    total = sum(taken.train_sequences for taken in state.seats.values())
    return tuple(
        state.seats[seat].train_sequences / total / len(own)
        for seat, own in enumerate(seat_experts(state.manifest.config))
        for _ in own
    )


def prices_job(state: HardState) -> PricesJob | None:
    """The move of the prices that is due: all silos have counted."""
    step = due(state)
    if state.phase is not Phase.ROUTING or step is None or state.open:
        return None
    block, turn = step
    seats = range(len(seat_experts(state.manifest.config)))
    keys = [UnitKey(UnitKind.COUNT, index=block, seat=seat, turn=turn) for seat in seats]
    return PricesJob(
        f"prices/{block}/{turn}",
        block,
        turn,
        tuple(output(state, key, "counts") for key in keys),
        tuple(state.seats[seat].train_sequences for seat in seats),
        tuple(state.seats[seat].heldout_sequences for seat in seats),
        prices(state),
    )


def may_read(state: HardState, node_id: str, digest: str) -> bool:
    """Whether a node may have a blob: not another silo's counts, nor weights that aren't public."""
    for accepted in state.finished.values():
        if accepted.node_id == node_id or all(ref.digest != digest for ref in accepted.outputs):
            continue
        key = UnitKey.parse(accepted.unit_id)
        if key.kind is UnitKind.TRAIN_EXPERT and share_of(state, key.expert) == "public":
            return True
        if key.kind is not UnitKind.SILO_BLOCK:
            return any(
                own.node_id == node_id and any(ref.digest == digest for ref in own.outputs)
                for own in state.finished.values()
            )
    return True


def unchanged_routers(state: HardState, key: UnitKey, outputs: tuple[BlobRef, ...]) -> bool:
    """Whether a block brings a router that the one before had brought, as of a frozen node."""
    before = state.finished.get(replace(key, index=key.index - 1).unit_id)
    known = {ref.digest for ref in before.outputs} if before else set()
    return any(ref.digest in known for ref in outputs)


def released_by_move(state: HardState, event: ev.PricesMoved) -> list[str]:
    """Digests that nothing needs once the prices have moved; call before the event is applied.

    Two silos, or two turns, may have counted the same: what is still needed stays.
    """
    gone = set(over(state, event))
    kept = {
        ref.digest
        for unit_id, accepted in state.finished.items()
        if unit_id not in gone
        for ref in accepted.outputs
    }
    old = (ref.digest for unit_id in gone for ref in state.finished[unit_id].outputs)
    return sorted({digest for digest in old if digest not in kept})
