"""Which blobs a run still needs, and what to do when one of them is lost.

Rules: of router parameters the last two rounds and the final ones are kept, of score blocks
those of the round being divided and of the one before (a lost division can be made again),
of an unfinished expert's collected weights the last two (one may be on its way to a node
while the next arrives), of lists all (they are small, and the proof of the data's use wants
them), of opinions those that wait for the judge. Of a withdrawn expert nothing is kept but its
lists, and its router as long as opinions on others may be formed with it, or its silo's other
experts are trained. What of a private run's steps is kept is `silo_book`'s part. Functions of
hard state; nothing is deleted here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.silos import released_by_move, router_is_needed
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, UnitKey, UnitKind
from smalltalk_fed.core.withdrawal_book import of_silo_that_left

SCORES_ROUNDS = 2
PARAMETERS_ROUNDS = 3


def needed_blobs(state: HardState) -> dict[str, BlobRef]:
    """Every blob that a continuing run may hand out, compute with or package, by digest."""
    needed = {ref.digest: ref for ref in _lists(state)}
    for accepted in state.finished.values():
        key = UnitKey.parse(accepted.unit_id)
        for ref in accepted.outputs:
            if _needed(state, key, ref.name):
                needed[ref.digest] = ref
    for states in state.collected.values():
        needed |= {ref.digest: ref for event in states for ref in event.outputs}
    return needed


def released_by(state: HardState, event: ev.Event) -> tuple[str, ...]:
    """Digests that nothing needs any more once `event` is applied; call before applying it."""
    released: list[str] = []
    match event:
        case ev.RoundAssigned():
            for name, age in (("scores", SCORES_ROUNDS), ("parameters", PARAMETERS_ROUNDS)):
                for expert in range(state.experts):
                    key = UnitKey(UnitKind.ROUTER_ROUND, expert, event.round - age)
                    accepted = state.finished.get(key.unit_id)
                    outputs = accepted.outputs if accepted else ()
                    released += [ref.digest for ref in outputs if ref.name == name]
        case ev.WeightsCollected():
            before = state.collected.get(event.unit_id, ())
            released += [ref.digest for old in before[:-1] for ref in old.outputs]
        case ev.UnitAccepted():
            kept = {ref.digest for ref in event.outputs}
            for old in state.collected.get(event.unit_id, ()):
                released += [ref.digest for ref in old.outputs if ref.digest not in kept]
        case silo_ev.PricesMoved():
            released += released_by_move(state, event)
        case ev.AuditSettled():
            released += _opinions_of(state, event.unit_id)
        case ev.UnitRejected():
            released += _outputs_of(state, event.unit_id)
        case ev.BlobLost() if event.unit_id in state.audits:
            released += _opinions_of(state, event.unit_id)
        case ev.NodeQuarantined():
            for unit_id in event.undone:
                released += _outputs_of(state, unit_id)
        case silo_ev.ExpertWithdrawn():
            released += (*event.blobs, *withdrawn_blobs(state))
        case ev.PhaseChanged() if event.phase in (Phase.EVALUATING, Phase.FINISHED):
            released += withdrawn_blobs(state)
    return tuple(released)


def remedy(state: HardState, digest: str, at: float, reason: str) -> ev.BlobLost | None:
    """The event that makes a lost blob's maker due again; None if the run can't make it anew.

    A unit of the present phase is done again by some node; a round's division and the
    segments are computed again from the same scores and slices, with the same outcome.
    """
    for accepted in state.finished.values():
        if any(ref.digest == digest for ref in accepted.outputs):
            key = UnitKey.parse(accepted.unit_id)
            again = key.target in state.unsettled or state.in_phase(key)
            return ev.BlobLost(at, digest, accepted.unit_id, 0, reason) if again else None
    for unit_id, states in state.collected.items():
        if any(ref.digest == digest for event in states for ref in event.outputs):
            return ev.BlobLost(at, digest, unit_id, 0, reason)
    assigned, phase = state.rounds.get(state.round), state.paused_from or state.phase
    shares = assigned.shares if assigned and phase is Phase.ROUTING else ()
    if any(ref.digest == digest for ref in shares):
        return ev.BlobLost(at, digest, "", state.round, reason)
    segments = state.segments.segments if state.segments and phase is Phase.TRAINING else ()
    if any(ref.digest == digest for ref in segments):
        return ev.BlobLost(at, digest, "", 0, reason)
    return None


def _needed(state: HardState, key: UnitKey, name: str) -> bool:
    match key.kind:
        case UnitKind.ROUTER_ROUND:
            if key.expert in state.withdrawn and name == "parameters" and _routers_rest(state):
                return False
            return _kept(state, key, name)
        case UnitKind.SILO_BLOCK:
            return router_is_needed(state, key, name)
        case UnitKind.AUDIT:
            return key.target in state.unsettled
        case _:
            return True


def blobs_of_expert(
    state: HardState, expert: int, leaving: Collection[int] = ()
) -> tuple[str, ...]:
    """Digests of all that is kept of an expert and its router, but for lists of text.

    Of a silo that has no expert left, when `leaving` go with it, its counts as well.
    """
    found = _outputs_of(state, UnitKey(UnitKind.TRAIN_EXPERT, expert).unit_id)
    for accepted in state.finished.values():
        name = f"router-{expert}"  # of a silo's block
        if UnitKey.parse(accepted.unit_id).expert == expert:
            name = "parameters"
        found += [ref.digest for ref in accepted.outputs if ref.name == name]
    found += _digests(state, of_silo_that_left(state, expert, (expert, *leaving)))
    return tuple(dict.fromkeys(found))


def withdrawn_blobs(state: HardState) -> tuple[str, ...]:
    """Digests of what withdrawn experts left behind; some may be needed for others still."""
    return tuple(digest for event in state.withdrawn.values() for digest in event.blobs)


def _routers_rest(state: HardState) -> bool:
    """Whether no unit is made from routers any more: no opinion on an expert is asked for."""
    return state.phase is Phase.FINISHED or not state.manifest.config.audit.rate


def _opinions_of(state: HardState, unit_id: str) -> list[str]:
    """Blobs of the opinions on a result, but for those that another audit waits for."""
    audit = state.audits[unit_id]
    others = {
        ref.digest
        for other in state.unsettled
        if other != unit_id
        for opinion in state.audits[other].opinions
        for ref in state.finished[opinion].outputs
    }
    found = _digests(state, audit.opinions)
    return [digest for digest in found if digest not in others]


def _outputs_of(state: HardState, unit_id: str) -> list[str]:
    """Blobs that fall with a result that is taken back, the opinions on it among them."""
    audit = state.audits.get(unit_id)
    found = _digests(state, (unit_id, *(audit.opinions if audit else ())))
    collected = state.collected.get(unit_id, ())
    return found + [ref.digest for event in collected for ref in event.outputs]


def _digests(state: HardState, unit_ids: Iterable[str]) -> list[str]:
    finished = (state.finished.get(unit_id) for unit_id in unit_ids)
    return [ref.digest for accepted in finished if accepted for ref in accepted.outputs]


def _kept(state: HardState, key: UnitKey, name: str) -> bool:
    if name == "scores":
        return key.index > state.round - SCORES_ROUNDS and key.index < state.rounds_total
    return key.index > state.round - PARAMETERS_ROUNDS


def _lists(state: HardState) -> Iterator[BlobRef]:
    for assigned in state.rounds.values():
        yield from assigned.shares
    if state.segments is not None:
        yield from state.segments.segments
