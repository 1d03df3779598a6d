"""The journal read as a proof: who trained on what, in the lineage of every accepted state.

Rules, each a check by name:
    shares      of every round together its chunk, over the rounds every sequence once a pass
                (`audit_lists`)
    routers     rounds 1, 2, 3, ... without a gap, the next divided when every router has done
                the one before; a division that was lost comes back the same; each router's
                rounds are accepted once and one after the other, and of one that was taken
                back only the last counts
    segments    made once every slice is in, every training sequence in one of them; made
                again they are the same
    experts     trained on their segments from step 0 to the last (`audit_experts`)
    audits      nothing is divided, made or finished while a result of it is looked at
    signatures  every result is signed by the node that it is counted for, over the unit as
                it was handed out, so over the digests of what it began from
Events are folded one at a time; what is remembered grows with experts and collected states,
not with rounds. Lists are read through the function that is given; nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.catalogue import outputs_of
from smalltalk_fed.core.phases import Trigger
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, UnitKey, UnitKind
from smalltalk_fed.core.withdrawal_book import is_over
from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.host.audit_experts import ExpertParts
from smalltalk_fed.host.audit_lists import (
    Experts,
    Ids,
    Passes,
    check_segments,
    check_shares,
    check_slices,
)
from smalltalk_fed.host.audit_signatures import is_signed
from smalltalk_fed.host.findings import Finding
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids

ROUNDS_REMEMBERED = 3


@dataclass
class Trail:
    """Give it every event in order, then `finish`."""

    manifest: RunManifest
    read: Callable[[BlobRef], bytes]  # raises WorldError if the blob is gone or damaged
    found: Callable[[Finding], None]
    counts: Counter[str] = field(default_factory=Counter)
    state: HardState = field(init=False)
    passes: Passes = field(init=False)
    _parts: ExpertParts = field(init=False)
    _round: int = 0
    _shares: dict[int, tuple[BlobRef, ...]] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)  # rounds whose division is due again
    _valid: dict[str, ev.UnitAccepted] = field(default_factory=dict)  # results that count
    _taken_back: dict[str, ev.UnitAccepted] = field(default_factory=dict)
    _segments: ev.SegmentsMade | None = None
    _segments_lost: bool = False

    def __post_init__(self) -> None:
        self.state, self.passes = HardState(self.manifest), Passes(self.manifest)
        self._parts = ExpertParts(self.manifest)

    def take(self, event: ev.Event) -> None:
        """Check one event against all before it."""
        match event:
            case ev.RoundAssigned():
                self._divide(event)
            case ev.UnitAccepted():
                self._accept(event)
            case ev.WeightsCollected():
                self._collect(event)
            case ev.UnitRejected():
                self._take_back(event.unit_id)
            case silo_ev.ExpertWithdrawn():
                self._valid.pop(UnitKey(UnitKind.TRAIN_EXPERT, event.expert).unit_id, None)
            case ev.NodeQuarantined():
                for unit_id in event.undone:
                    begun = self.state.contributors.get(unit_id, {}).get(event.node_id)
                    self._parts.cut(unit_id, begun)
                    self._take_back(unit_id)
            case ev.AuditSettled():
                self.counts[event.verdict] += 1
                for number in range(1, self.state.asked.get(event.unit_id, 0) + 1):
                    self._valid.pop(f"{UnitKind.AUDIT}/{number}/{event.unit_id}", None)
            case ev.BlobLost() if event.unit_id:
                self._take_back(event.unit_id)
            case ev.BlobLost() if event.round:
                self._lost.add(event.round)
            case ev.BlobLost():
                self._segments_lost = True
            case ev.SegmentsMade():
                self._make_segments(event)
            case ev.PhaseChanged():
                self._move(event)
        self.state.apply(event)

    def finish(self) -> None:
        """Check the lists that stand at the journal's end."""
        self._settle_round()
        if self._segments and not self._segments_lost:
            self._settle_segments(self._segments)

    # ------------------------------------------------------------------------------- rounds

    def _divide(self, event: ev.RoundAssigned) -> None:
        number, where = event.round, f"round {event.round}"
        if number in self._lost:
            self._lost.discard(number)
            if _digests(self._shares[number]) != _digests(event.shares):
                self._say("routers", where, "it was divided again, and differently")
            return
        if number != self._round + 1:
            self._say("routers", where, f"it was divided after round {self._round}")
        self._nothing_is_looked_at(where)
        for unit_id in self._undone(UnitKind.ROUTER_ROUND, number - 1) if number > 1 else ():
            self._say("routers", where, f"it was divided before {unit_id} was done")
        self._settle_round()
        self._round, self._shares[number] = number, event.shares
        self._forget(number - ROUNDS_REMEMBERED)

    def _settle_round(self) -> None:
        """The latest division stands: look at its lists."""
        number = self._round
        if number == 0 or number in self._lost:
            return
        where = f"round {number}"
        shares = self._lists(self._shares[number], "shares", where)
        for wrong in (
            check_shares(self.manifest, number, shares) if shares else "",
            self.passes.use(number),
        ):
            if wrong:
                self._say("shares", where, wrong)
        self.counts["rounds"] += 1
        self.counts["sequences"] += sum(share.size for share in shares)

    def _forget(self, number: int) -> None:
        self._shares.pop(number, None)
        for expert in range(self.manifest.experts):
            unit_id = UnitKey(UnitKind.ROUTER_ROUND, expert, number).unit_id
            self._valid.pop(unit_id, None)
            self._taken_back.pop(unit_id, None)

    # ------------------------------------------------------------------------------ results

    def _accept(self, event: ev.UnitAccepted) -> None:
        unit_id, key = event.unit_id, UnitKey.parse(event.unit_id)
        check = {UnitKind.ROUTER_ROUND: "routers", UnitKind.SHARD: "segments"}.get(
            key.kind, "experts"
        )
        if unit_id in self._valid:
            self._say(check, unit_id, "it was accepted twice")
        if tuple(ref.name for ref in event.outputs) != outputs_of(self.manifest, key):
            self._say(check, unit_id, "its outputs are not those of such a unit")
        match key.kind:
            case UnitKind.ROUTER_ROUND:
                self._check_router(event, key)
            case UnitKind.SHARD:
                for other in self._undone(UnitKind.ROUTER_ROUND, self._last_round):
                    self._say(check, unit_id, f"it was accepted, though {other} does not count")
            case UnitKind.TRAIN_EXPERT:
                self._check_part(unit_id, self._parts.finished(event, self._segments))
                self.counts["experts"] += unit_id not in self._taken_back
        self._check_signature(event)
        self._valid[unit_id] = event
        self._taken_back.pop(unit_id, None)
        self.counts["results"] += 1

    def _check_router(self, event: ev.UnitAccepted, key: UnitKey) -> None:
        unit_id, earlier = event.unit_id, self._taken_back.get(event.unit_id)
        due = {self._round} - self._lost
        if earlier and self._round in self._lost:
            due.add(self._round - 1)  # the lost division's inputs were lost, too
        if key.index not in due:
            self._say("routers", unit_id, f"it was accepted in round {self._round}")
        before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, key.index - 1).unit_id
        if key.index > 1 and before not in self._valid:
            self._say("routers", unit_id, f"it was accepted, though {before} does not count")
        after = UnitKey(UnitKind.ROUTER_ROUND, key.expert, key.index + 1).unit_id
        if earlier and after in self._valid and earlier.outputs[0] != event.outputs[0]:
            self._say("routers", unit_id, f"it is not the one any more that {after} began from")

    def _collect(self, event: ev.WeightsCollected) -> None:
        if event.unit_id in self._valid:
            self._say("experts", event.unit_id, "weights were collected after it was done")
        self._check_part(event.unit_id, self._parts.collected(event))
        self._check_signature(event)
        self.counts["collected"] += 1

    def _check_part(self, unit_id: str, wrong: str) -> None:
        if not self._segments or self._segments_lost:
            wrong = wrong or "it was trained while there were no segments"
        if wrong:
            self._say("experts", unit_id, wrong)

    def _check_signature(self, event: ev.UnitAccepted | ev.WeightsCollected) -> None:
        if is_signed(self.state, event):
            self.counts["signatures"] += 1
            return
        what = f"node {event.node_id} did not sign it over what it was handed out with"
        self._say("signatures", event.unit_id, what)

    def _take_back(self, unit_id: str) -> None:
        event = self._valid.pop(unit_id, None)
        if event is not None:
            self._taken_back[unit_id] = event
            self.counts["taken_back"] += 1

    # --------------------------------------------------------------------- segments, phases

    def _make_segments(self, event: ev.SegmentsMade) -> None:
        for index in range(self.manifest.shard_count):
            unit_id = UnitKey(UnitKind.SHARD, index=index).unit_id
            if unit_id not in self._valid:
                self._say("segments", "segments", f"they were made before {unit_id} was done")
        if self._segments is None:
            self._nothing_is_looked_at("segments")
        if self._segments and not self._segments_lost:
            self._say("segments", "segments", "they were made twice")
        if self._segments and _digests(self._segments.segments) != _digests(event.segments):
            self._say("segments", "segments", "they were made again, and differently")
        self._segments, self._segments_lost = event, False

    def _settle_segments(self, event: ev.SegmentsMade) -> None:
        segments = self._lists(event.segments, "segments", "segments")
        if not segments:
            return
        wrong, expert_n = check_segments(self.manifest, segments)
        wrong = wrong or check_slices(self.manifest, expert_n, self._slices())
        loads = [event.figures.get(f"load_{expert}") for expert in range(len(segments))]
        if loads != [ids.size for ids in segments]:
            wrong = wrong or f"their lists are not as long as said ({loads})"
        if wrong:
            self._say("segments", "segments", wrong)
        self.counts["segments"] = len(segments)

    def _slices(self) -> Iterator[tuple[int, Experts]]:
        for index in range(self.manifest.shard_count):
            event = self._valid.get(UnitKey(UnitKind.SHARD, index=index).unit_id)
            start, stop = self.manifest.shard_range(index)
            if event is None:
                continue
            try:
                data = self.read(event.outputs[0])
                yield index, decode_experts(data, stop - start, self.manifest.experts)
            except (ValueError, SmalltalkError) as error:
                self._say("segments", event.unit_id, f"its list can't be used: {error}")

    def _move(self, event: ev.PhaseChanged) -> None:
        undone: Iterator[str] = iter(())
        if event.trigger in (Trigger.ROUTERS_DONE, Trigger.EXPERTS_DONE):
            self._nothing_is_looked_at(f"phase {event.phase}")
        if event.trigger is Trigger.ROUTERS_DONE:
            undone = self._undone(UnitKind.ROUTER_ROUND, self._last_round)
        elif event.trigger is Trigger.EXPERTS_DONE:
            undone = self._undone(UnitKind.TRAIN_EXPERT)
        for unit_id in undone:
            check = "routers" if event.trigger is Trigger.ROUTERS_DONE else "experts"
            self._say(check, f"phase {event.phase}", f"it began before {unit_id} was done")

    # -------------------------------------------------------------------------------- small

    def _nothing_is_looked_at(self, where: str) -> None:
        for unit_id in self.state.unsettled:
            if self.state.in_phase(UnitKey.parse(unit_id)):
                self._say("audits", where, f"it came while {unit_id} was looked at")

    @property
    def _last_round(self) -> int:
        return self.manifest.config.router.rounds

    def _undone(self, kind: UnitKind, index: int = 0) -> Iterator[str]:
        keys = (UnitKey(kind, expert, index) for expert in range(self.manifest.experts))
        wanted = (key for key in keys if not is_over(self.state, key))
        return (key.unit_id for key in wanted if key.unit_id not in self._valid)

    def _lists(self, refs: tuple[BlobRef, ...], check: str, where: str) -> list[Ids]:
        """The id lists, or none if one of them can't be used."""
        try:
            return [decode_ids(self.read(ref), self.manifest.train_sequences) for ref in refs]
        except (ValueError, SmalltalkError) as error:
            self._say(check, where, f"a list can't be used: {error}")
            return []

    def _say(self, check: str, where: str, what: str) -> None:
        self.found(Finding(check, where, what))


def _digests(refs: tuple[BlobRef, ...]) -> list[str]:
    return [ref.digest for ref in refs]
