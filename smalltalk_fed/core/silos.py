"""What a private run's state asks for: units with their inputs, jobs, blobs that are needed.

Functions of hard state alone, as `handout`, `jobs` and `retention` are for shared text, which
call these where a run is private. Which step is due is `silo_book`'s part, who sits where
`seats`'. No ids and no scores are ever asked for, only routers, counts, sums, and an expert's
weights where its owner allows it. Units are handed out without experts that have left; a silo's
own text stays divided as it was among those whose routers its last block made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from smalltalk_fed.config.private import seat_experts, seat_of
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.job_messages import PricesJob
from smalltalk_fed.core.outputs import named, output
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.seats import share_of
from smalltalk_fed.core.silo_book import block_count, due, over, prices, remaining, seats_left
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import OurError, Refused


def routers(state: HardState, block: int, gone: Collection[int]) -> tuple[BlobRef, ...]:
    """All routers but those of the experts `gone`, as they are after `block`, by expert."""
    there = (expert for expert in range(state.experts) if expert not in gone)
    return tuple(router(state, expert, block) for expert in there)


def router(state: HardState, expert: int, block: int) -> BlobRef:
    """One router after `block`, called `router-E`."""
    seat = seat_of(state.manifest.config, expert)
    key = UnitKey(UnitKind.SILO_BLOCK, index=block, seat=seat)
    return output(state, key, f"router-{expert}")


def unit(state: HardState, key: UnitKey, left_before: Collection[int] | None = None) -> Unit:
    """A unit of a private run with its inputs, as it is handed out.

    `left_before`: as it was when only these experts had left; by default, as it is now.

    Raises:
        OurError: the run has no such unit.
        Refused: nobody asks for it any more.
    """
    gone = tuple(sorted(state.withdrawn if left_before is None else left_before))
    last = block_count(state.manifest)
    match key.kind:
        case UnitKind.SILO_BLOCK:
            own, before = remaining(state, key.seat), key.index - 1
            inputs = tuple(router(state, e, before) for e in own) if before else ()
            return Unit(key, inputs, withdrawn=_others(state, key.seat, own))
        case UnitKind.COUNT:
            if not state.in_phase(key):
                raise Refused(f"{key.unit_id} is asked for no more")
            inputs = routers(state, key.index, gone)
            return Unit(key, inputs, prices=prices(state), withdrawn=gone)
        case UnitKind.TRAIN_EXPERT:
            seat = seat_of(state.manifest.config, key.expert)
            own = divided_among(state, seat)
            inputs = tuple(router(state, e, last) for e in own)
            if state.segments is not None:
                inputs += (named("segment", state.segments.segments[key.expert]),)
            shares, others = text_shares(state), _others(state, seat, own)
            return Unit(key, inputs, weights=shares, withdrawn=others)
        case UnitKind.SHARD:
            return Unit(key, routers(state, last, gone), withdrawn=gone)
        case UnitKind.EVALUATE_SILO:
            inputs = (*routers(state, last, gone), *public_experts(state, key.seat))
            return Unit(key, inputs, prices=prices(state), withdrawn=gone)
    raise OurError(f"{key.unit_id} is no unit of a private run; this is a bug")


def earlier_forms(state: HardState, key: UnitKey) -> list[Unit]:
    """A unit as it may have been handed out before experts left, latest first.

    Counts and divisions that were begun with them still count: what they say of an expert that
    has left is passed over, and asking a silo again would cost it privacy. Other units begin
    again (`begins_again`).
    """
    if key.kind not in (UnitKind.COUNT, UnitKind.SHARD):
        return []
    forms, gone = [], list(state.withdrawn)
    while gone:
        gone.pop()
        try:
            forms.append(unit(state, key, gone))
        except OurError:  # a router of then was lost
            break
    return forms


def begins_again(state: HardState, key: UnitKey, expert: int) -> bool:
    """Whether a unit in work must be begun anew, since `expert` has just left."""
    if key.kind is UnitKind.SILO_BLOCK:
        return key.seat == seat_of(state.manifest.config, expert)
    return key.kind is UnitKind.EVALUATE_SILO


def divided_among(state: HardState, seat: int) -> tuple[int, ...]:
    """Experts that a silo's own text is divided among: those whose routers its last block made.

    Who leaves later takes its part of the text along; the others' stays as it was.
    """
    key = UnitKey(UnitKind.SILO_BLOCK, index=block_count(state.manifest), seat=seat)
    accepted = state.finished.get(key.unit_id)
    made = {ref.name for ref in accepted.outputs} if accepted else set()
    own = seat_experts(state.manifest.config)[seat]
    return tuple(expert for expert in own if f"router-{expert}" in made)


def _others(state: HardState, seat: int, those: Collection[int]) -> tuple[int, ...]:
    own = seat_experts(state.manifest.config)[seat]
    return tuple(expert for expert in own if expert not in those)


def router_is_needed(state: HardState, key: UnitKey, name: str) -> bool:
    """Whether a router that a block made is still an input of anything.

    That of a withdrawn expert only as long as its silo's text, which was divided with it, is
    trained on by the others.
    """
    expert = int(name.removeprefix("router-"))
    if expert not in state.withdrawn:
        return True
    phase = state.paused_from if state.phase is Phase.PAUSED else state.phase
    if phase not in (Phase.ROUTING, Phase.SHARDING, Phase.TRAINING):
        return False
    others = (UnitKey(UnitKind.TRAIN_EXPERT, other) for other in remaining(state, key.seat))
    last = key.index == block_count(state.manifest)
    return last and not all(state.is_finished(other) for other in others)


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
    """Each expert's part of all training text: an even part of its own silo's; they add up to 1.

    Silos that left keep theirs, so that the others are trained as they would have been. Of an
    expert that left before its silo's text was divided the silo's other experts have it.
    """
    total = sum(taken.train_sequences for taken in state.seats.values())
    shares = [0.0] * state.experts
    for seat, own in enumerate(seat_experts(state.manifest.config)):
        those = divided_among(state, seat) or own
        for expert in those:
            shares[expert] = state.seats[seat].train_sequences / total / len(those)
    return tuple(shares)


def prices_job(state: HardState) -> PricesJob | None:
    """The move of the prices that is due: all silos that are left have counted."""
    step = due(state)
    if state.phase is not Phase.ROUTING or step is None or state.open:
        return None
    block, turn = step
    seats = tuple(seats_left(state))
    keys = [UnitKey(UnitKind.COUNT, index=block, seat=seat, turn=turn) for seat in seats]
    without = f"/{len(state.withdrawn)}" if state.withdrawn else ""  # another job
    return PricesJob(
        f"prices/{block}/{turn}{without}",
        block,
        turn,
        seats,
        tuple(remaining(state, seat) for seat in seats),
        tuple(output(state, key, "counts") for key in keys),
        tuple(state.seats[seat].train_sequences for seat in seats),
        tuple(state.seats[seat].heldout_sequences for seat in seats),
        prices(state),
    )


def may_read(state: HardState, node_id: str, digest: str) -> bool:
    """Whether a node may have a blob: not another silo's counts, nor weights that aren't public.

    Nor a router that was withdrawn, which may be here still for its own silo.
    """
    gone = {f"router-{expert}" for expert in state.withdrawn}
    for accepted in state.finished.values():
        names = {ref.name for ref in accepted.outputs if ref.digest == digest}
        if accepted.node_id == node_id or not names:
            continue
        key = UnitKey.parse(accepted.unit_id)
        if key.kind is UnitKind.TRAIN_EXPERT and share_of(state, key.expert) == "public":
            return True
        if key.kind is not UnitKind.SILO_BLOCK or names <= gone:
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


def released_by_move(state: HardState, event: silo_ev.PricesMoved) -> list[str]:
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
