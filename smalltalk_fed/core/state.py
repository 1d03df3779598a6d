"""Hard state: what a run is, as the fold of its journal. Only `HardState.apply` changes it.

Rules: two replays of the same events give equal states; nothing here depends on who is
connected (leases and presence are soft, `leases.py`). What old rounds no longer need is
folded into `history`, so that the state does not grow with the run; the journal keeps all
of it. What a unit is handed out with is `handout`'s part, which blobs are needed
`retention`'s, the state as JSON `snapshot`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import HELDOUT, BlobRef, UnitKey, UnitKind
from smalltalk_fed.errors import OurError

ROUNDS_KEPT = 3  # with all their results; older ones are in `history`
HISTORY_CELLS = 1 << 16  # rounds x experts that `history` keeps


@dataclass
class Invite:
    """An invitation, by its secret's digest."""

    secret_sha256: str
    expires_at: float
    uses: int
    name: str
    used_by: list[str] = field(default_factory=list)
    cancelled: bool = False


@dataclass
class Node:
    """An enrolled machine."""

    node_id: str
    name: str
    key_sha256: str
    signing_key: str = ""
    revoked: str = ""  # the reason, or empty


@dataclass(frozen=True)
class PastRound:
    """What is remembered of a round whose results are needed no more; lists by expert."""

    at: float
    figures: dict[str, float]
    losses: tuple[float | None, ...]
    nodes: tuple[str | None, ...]
    seconds: tuple[float | None, ...]


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
    joined: int = 0  # nodes that joined and were not revoked
    rounds: dict[int, ev.RoundAssigned] = field(default_factory=dict)
    history: dict[int, PastRound] = field(default_factory=dict)
    finished: dict[str, ev.UnitAccepted] = field(default_factory=dict)
    started: dict[str, ev.UnitStarted] = field(default_factory=dict)
    collected: dict[str, tuple[ev.WeightsCollected, ...]] = field(default_factory=dict)  # last 2
    lineage: dict[str, dict[int, BlobRef]] = field(default_factory=dict)  # unit -> step -> state
    segments: ev.SegmentsMade | None = None
    last_at: float = 0.0  # time of the latest event
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
                before = self.collected.get(event.unit_id, ())
                self.collected[event.unit_id] = (*before[-1:], event)
                self.lineage.setdefault(event.unit_id, {})[event.step] = event.outputs[0]
            case ev.RoundAssigned():
                self.rounds[event.round] = event
                self._forget_round(event.round - ROUNDS_KEPT)
                self._open = None
            case ev.SegmentsMade():
                self.segments = event
                self._open = None
            case ev.PhaseChanged():
                self.paused_from = self.phase if event.phase is Phase.PAUSED else None
                self.phase, self.reason = event.phase, event.reason
                self.entered_at.setdefault(event.phase.value, event.at)
                self._open = None
            case ev.UnitRejected():
                self.finished.pop(event.unit_id, None)
                self._open = None
            case ev.BlobLost():
                self._lose(event)
                self._open = None
            case _:
                self._apply_membership(event)

    def _apply_membership(self, event: ev.Event) -> None:
        match event:
            case ev.InviteMade():
                self.invites[event.secret_sha256] = Invite(
                    event.secret_sha256, event.expires_at, event.uses, event.name
                )
            case ev.InviteCancelled():
                self.invites[event.secret_sha256].cancelled = True
            case ev.NodeEnrolled():
                self.nodes[event.node_id] = Node(event.node_id, event.name, event.key_sha256)
                self.invites[event.secret_sha256].used_by.append(event.node_id)
            case ev.NodeJoined():
                node = self.nodes[event.node_id]
                self.joined += not node.signing_key and not node.revoked
                node.signing_key = event.signing_key
            case ev.NodeRevoked():
                node = self.nodes[event.node_id]
                self.joined -= bool(node.signing_key) and not node.revoked
                node.revoked = event.reason
            case _:
                raise OurError(f"no rule for the event {type(event).__name__}")

    def _accept(self, event: ev.UnitAccepted) -> None:
        self.finished[event.unit_id] = event
        # What was collected on the way, and who was on it, matters no more.
        self.collected.pop(event.unit_id, None)
        self.lineage.pop(event.unit_id, None)
        self.started.pop(event.unit_id, None)
        key = UnitKey.parse(event.unit_id)
        if key.kind is UnitKind.TRAIN_SEED:
            self._open = None  # the experts start from it
        elif self._open is not None:
            self._open.pop(key, None)

    def _forget_round(self, number: int) -> None:
        """Fold a round that nothing needs any more into `history`."""
        assigned = self.rounds.pop(number, None)
        if assigned is None:
            return
        self.history[number] = _past_round(self, assigned)
        for expert in range(self.experts):
            self.finished.pop(UnitKey(UnitKind.ROUTER_ROUND, expert, number).unit_id, None)
        while len(self.history) > max(16, HISTORY_CELLS // self.experts):
            del self.history[min(self.history)]

    def _lose(self, event: ev.BlobLost) -> None:
        """Make what the lost blob was made by due again (`retention.remedy` chose it)."""
        if event.unit_id:
            self.finished.pop(event.unit_id, None)
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

        Another object whenever units came in; the same one while they are only finished.
        """
        if self._open is None:
            self._open = {key: None for key in self.phase_units() if not self.is_finished(key)}
        return self._open

    def is_finished(self, key: UnitKey) -> bool:
        """Whether a result of this unit counts."""
        past = next(reversed(self.history), 0)  # rounds come in order
        if key.kind is UnitKind.ROUTER_ROUND and 0 < key.index <= past:
            return 0 <= key.expert < self.experts  # in `history`: its round is over
        return key.unit_id in self.finished

    def phase_units(self) -> Iterator[UnitKey]:
        """Units of the present phase and round, finished or not, in the order of work."""
        match self.phase:
            case Phase.ROUTING if self.round:
                for expert in range(self.experts):
                    yield UnitKey(UnitKind.ROUTER_ROUND, expert, self.round)
            case Phase.SHARDING:
                for index in range(self.manifest.shard_count):
                    yield UnitKey(UnitKind.SHARD, index=index)
                if self.manifest.heldout_sequences:
                    yield UnitKey(UnitKind.SHARD, index=HELDOUT)
            case Phase.TRAINING if self.segments is not None:
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
                return phase is Phase.SHARDING and self.manifest.heldout_sequences > 0
            case UnitKind.SHARD:
                return phase is Phase.SHARDING and 0 <= key.index < self.manifest.shard_count
            case UnitKind.TRAIN_SEED:
                return phase is Phase.TRAINING and self.manifest.config.expert.init == "seed"
            case UnitKind.TRAIN_EXPERT:
                seeded = self.manifest.config.expert.init != "seed"
                seeded = seeded or self.is_finished(UnitKey(UnitKind.TRAIN_SEED))
                ours = phase is Phase.TRAINING and seeded and self.segments is not None
            case UnitKind.EVALUATE:
                ours = phase is Phase.EVALUATING
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
