"""Hard state: what a run is, as the fold of its journal. Only `HardState.apply` changes it.

Rules: two replays of the same events give equal states; nothing here depends on who is
connected (leases and presence are soft, `leases.py`). What old rounds no longer need is
folded into `history`, so that the state does not grow with the run; the journal keeps all
of it. How nodes come and go is folded in `membership`, what audits change in `audit_book`, the
steps of a private run in `silo_book`.
What a unit is handed out with is `handout`'s part, which blobs are needed `retention`'s, the
state as JSON `snapshot`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import audit_book, membership, silo_book, withdrawal_book
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.records import Audit, Invite, Node, PastRound
from smalltalk_fed.core.units import HELDOUT, OF_A_SILO, BlobRef, UnitKey, UnitKind

ROUNDS_KEPT = 3  # with all their results; older ones are in `history`
HISTORY_CELLS = 1 << 16  # rounds x experts that `history` keeps


@dataclass
class HardState:
    """All that survives a restart."""

    manifest: RunManifest
    phase: Phase = Phase.RECRUITING
    reason: str = "waiting for nodes"
    paused_from: Phase | None = None
    entered_at: dict[str, float] = field(default_factory=dict)
    invites: dict[str, Invite] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    joined: int = 0  # nodes that joined and may work
    rounds: dict[int, ev.RoundAssigned] = field(default_factory=dict)
    history: dict[int, PastRound] = field(default_factory=dict)
    finished: dict[str, ev.UnitAccepted] = field(default_factory=dict)
    started: dict[str, ev.UnitStarted] = field(default_factory=dict)
    collected: dict[str, tuple[ev.WeightsCollected, ...]] = field(default_factory=dict)  # last 2
    lineage: dict[str, dict[int, BlobRef]] = field(default_factory=dict)  # unit -> step -> state
    contributors: dict[str, dict[str, int]] = field(default_factory=dict)  # unit -> node -> step
    segments: ev.SegmentsMade | None = None
    audits: dict[str, Audit] = field(default_factory=dict)  # of this and the last rounds' results
    asked: dict[str, int] = field(default_factory=dict)  # result's unit -> opinions asked so far
    redos: int = 0  # opinions so far for which a router's round is trained again
    waived: dict[str, str] = field(default_factory=dict)  # the latest, with their reasons
    withdrawn: dict[int, silo_ev.ExpertWithdrawn] = field(default_factory=dict)  # by expert
    last_at: float = 0.0  # time of the latest event
    seats: dict[int, silo_ev.SeatTaken] = field(default_factory=dict)  # of a private run
    moves: list[silo_ev.PricesMoved] = field(default_factory=list)
    # Derived: results whose audits are not settled, and those of them that the judge is to see.
    unsettled: dict[str, None] = field(default_factory=dict)
    to_judge: dict[str, None] = field(default_factory=dict)
    _open: dict[UnitKey, None] | None = field(default=None, compare=False, repr=False)

    # ------------------------------------------------------------------------------ apply

    def apply(self, event: ev.Event) -> None:
        """Fold one event in. The journal's order is the only order."""
        self.last_at = max(self.last_at, event.at)
        match event:
            case ev.UnitAccepted():
                self._accept(event)
            case ev.UnitStarted():
                self.started[event.unit_id] = event
            case ev.WeightsCollected():
                self._collect(event)
            case ev.RoundAssigned():
                self.rounds[event.round] = event
                self._forget_round(event.round - ROUNDS_KEPT)
                self._open = None
            case ev.SegmentsMade():
                self.segments = event
                audit_book.forget_slices(self)
                self._open = None
            case ev.PhaseChanged():
                self.paused_from = self.phase if event.phase is Phase.PAUSED else None
                self.phase, self.reason = event.phase, event.reason
                self.entered_at.setdefault(event.phase.value, event.at)
                self._open = None
            case ev.UnitRejected():
                audit_book.taken_back(self, event.unit_id)
            case ev.BlobLost():
                self._lose(event)
                self._open = None
            case ev.AuditOpened():
                audit_book.opened(self, event)
            case ev.AuditSettled():
                audit_book.settled(self, event)
            case ev.NodeQuarantined():
                audit_book.quarantined(self, event)
            case ev.NodeReadmitted():
                audit_book.readmitted(self, event)
            case silo_ev.SeatTaken() | silo_ev.PricesMoved():
                silo_book.apply(self, event)
            case silo_ev.ExpertWithdrawn():
                withdrawal_book.withdrawn(self, event)
            case _:
                membership.apply(self, event)

    def _accept(self, event: ev.UnitAccepted) -> None:
        self.finished[event.unit_id] = event
        # What was collected on the way, and who was on it, matters no more.
        self.collected.pop(event.unit_id, None)
        self.lineage.pop(event.unit_id, None)
        self.contributors.pop(event.unit_id, None)
        self.started.pop(event.unit_id, None)
        key = UnitKey.parse(event.unit_id)
        if key.kind in (UnitKind.TRAIN_SEED, UnitKind.SILO_BLOCK):
            self._open = None  # the experts start from it, silos count with all routers
        else:
            self.came_closed(key)
        if key.kind is UnitKind.AUDIT:
            audit_book.given(self, event, key)

    def _collect(self, event: ev.WeightsCollected) -> None:
        before = self.collected.get(event.unit_id, ())
        self.collected[event.unit_id] = (*before[-1:], event)
        self.lineage.setdefault(event.unit_id, {})[event.step] = event.outputs[0]
        self.contributors.setdefault(event.unit_id, {}).setdefault(event.node_id, event.step)

    def _forget_round(self, number: int) -> None:
        """Fold a round that nothing needs any more into `history`."""
        assigned = self.rounds.pop(number, None)
        if assigned is None:
            return
        self.history[number] = _past_round(self, assigned)
        for expert in range(self.experts):
            unit_id = UnitKey(UnitKind.ROUTER_ROUND, expert, number).unit_id
            self.finished.pop(unit_id, None)
            audit_book.forget(self, unit_id)
        while len(self.history) > max(16, HISTORY_CELLS // self.experts):
            del self.history[min(self.history)]

    def _lose(self, event: ev.BlobLost) -> None:
        """Make what the lost blob was made by due again (`retention.remedy` chose it)."""
        if event.unit_id:
            audit_book.taken_back(self, event.unit_id)
            kept = [
                state
                for state in self.collected.pop(event.unit_id, ())
                if state.outputs[0].digest != event.digest
            ]
            if kept:
                self.collected[event.unit_id] = tuple(kept)
        elif event.round:
            self.rounds.pop(event.round, None)
        else:
            self.segments = None

    # ---------------------------------------------------------------------- what is to do

    @property
    def experts(self) -> int:
        """E."""
        return self.manifest.experts

    @property
    def rounds_total(self) -> int:
        """T."""
        return self.manifest.config.router.rounds

    @property
    def round(self) -> int:
        """The latest round whose chunk is divided; 0 before the first."""
        return max(self.rounds, default=0)

    @property
    def open(self) -> dict[UnitKey, None]:
        """Units of the present phase that nobody has finished, in the order of work.

        Another object whenever units came in; the same one while they are only finished, or
        audits are opened, whose units come last.
        """
        if self._open is None:
            self._open = {key: None for key in self.phase_units() if not self.is_finished(key)}
        return self._open

    def came_open(self, key: UnitKey) -> None:
        """Keep `open` current: this audit's opinion is asked for."""
        if self._open is not None and self.phase is not Phase.PAUSED and self.in_phase(key):
            self._open[key] = None

    def came_closed(self, key: UnitKey) -> None:
        """Keep `open` current: this unit is finished, or asked for no more."""
        if self._open is not None:
            self._open.pop(key, None)

    def anew(self) -> None:
        """Units came in: `open` is another object from now on."""
        self._open = None

    @property
    def divided(self) -> bool:
        """Whether every expert's text is settled; silos divide their own themselves."""
        if self.segments is not None:
            return True
        private = silo_book.is_private(self.manifest)
        return private and not silo_book.has_public_text(self.manifest)

    @property
    def waits_for_audits(self) -> bool:
        """Whether a result of the present phase is not settled yet."""
        return any(self.in_phase(UnitKey.parse(unit_id)) for unit_id in self.unsettled)

    def is_finished(self, key: UnitKey) -> bool:
        """Whether a result of this unit counts, or none is wanted any more."""
        if withdrawal_book.is_over(self, key):
            return True
        past = next(reversed(self.history), 0)  # rounds come in order
        if key.kind is UnitKind.ROUTER_ROUND and 0 < key.index <= past:
            return 0 <= key.expert < self.experts  # in `history`: its round is over
        if key.kind in OF_A_SILO and silo_book.is_over(self, key):
            return True
        return key.unit_id in self.finished

    def phase_units(self) -> Iterator[UnitKey]:
        """Units of the present phase and step, finished or not, in the order of work."""
        yield from self._work_units()
        if self.phase is not Phase.PAUSED:
            opinions = (self.audits[unit_id].key for unit_id in self.unsettled)
            yield from (key for key in opinions if self.in_phase(key))

    def _work_units(self) -> Iterator[UnitKey]:
        private = silo_book.is_private(self.manifest)
        match self.phase:
            case Phase.ROUTING | Phase.EVALUATING if private:
                yield from silo_book.units_of(self, self.phase)
            case Phase.ROUTING if self.round:
                for expert in range(self.experts):
                    yield UnitKey(UnitKind.ROUTER_ROUND, expert, self.round)
            case Phase.SHARDING:
                for index in range(self.manifest.shard_count):
                    yield UnitKey(UnitKind.SHARD, index=index)
                if self.manifest.heldout_sequences and not private:
                    yield UnitKey(UnitKind.SHARD, index=HELDOUT)
            case Phase.TRAINING if self.divided:
                seed = UnitKey(UnitKind.TRAIN_SEED)
                if self.manifest.config.expert.init == "seed":
                    yield seed
                    if not self.is_finished(seed):
                        return  # all experts start from it
                for expert in range(self.experts):
                    yield UnitKey(UnitKind.TRAIN_EXPERT, expert)
            case Phase.EVALUATING:
                for expert in range(self.experts):
                    yield UnitKey(UnitKind.EVALUATE, expert)

    def in_phase(self, key: UnitKey) -> bool:
        """Whether `key` is among `phase_units`, of the phase that a paused run was in too."""
        phase = self.paused_from if self.phase is Phase.PAUSED else self.phase
        match key.kind:
            case UnitKind.ROUTER_ROUND:
                ours = phase is Phase.ROUTING and key.index == self.round > 0
            case UnitKind.SHARD if key.index == HELDOUT:
                routed = self.manifest.heldout_sequences and not silo_book.is_private(self.manifest)
                return phase is Phase.SHARDING and bool(routed)
            case UnitKind.SHARD:
                return phase is Phase.SHARDING and 0 <= key.index < self.manifest.shard_count
            case UnitKind.TRAIN_SEED:
                return phase is Phase.TRAINING and self.manifest.config.expert.init == "seed"
            case UnitKind.TRAIN_EXPERT:
                seeded = self.manifest.config.expert.init != "seed"
                seeded = seeded or self.is_finished(UnitKey(UnitKind.TRAIN_SEED))
                ours = phase is Phase.TRAINING and seeded and self.divided
            case UnitKind.EVALUATE:
                private = silo_book.is_private(self.manifest)
                ours = phase is Phase.EVALUATING and not private
            case UnitKind.SILO_BLOCK | UnitKind.COUNT | UnitKind.EVALUATE_SILO:
                return silo_book.silo_unit_in(self, phase, key)
            case UnitKind.AUDIT:
                audit = self.audits.get(key.target)
                if audit is None or audit.verdict or audit.number != key.index:
                    return False
                return self.in_phase(UnitKey.parse(key.target))
        return ours and 0 <= key.expert < self.experts


def all_rounds(state: HardState) -> dict[int, PastRound]:
    """Every round that the state remembers, the present one as far as it is."""
    recent = {number: _past_round(state, each) for number, each in state.rounds.items()}
    return state.history | recent


def _past_round(state: HardState, assigned: ev.RoundAssigned) -> PastRound:
    results = [
        state.finished.get(UnitKey(UnitKind.ROUTER_ROUND, expert, assigned.round).unit_id)
        for expert in range(state.experts)
    ]
    return PastRound(
        assigned.at,
        dict(assigned.figures),
        tuple(r.figures.get("loss_mean") if r else None for r in results),
        tuple(r.node_id if r else None for r in results),
        tuple(r.seconds if r else None for r in results),
    )
