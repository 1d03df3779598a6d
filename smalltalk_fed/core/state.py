"""Hard state: what a run is, as the fold of its journal. Only `HardState.apply` changes it.

Rules: two replays of the same events give equal states; nothing here depends on who is
connected (leases and presence are soft, `leases.py`). `open_units`, `unit` and `next_job`
are functions of the state alone: what is there to do, and with which inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core.messages import AssignJob, Job, SegmentsJob
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import HELDOUT, BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import OurError


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
    rounds: dict[int, ev.RoundAssigned] = field(default_factory=dict)
    finished: dict[str, ev.UnitAccepted] = field(default_factory=dict)
    segments: ev.SegmentsMade | None = None

    # ------------------------------------------------------------------------------ apply

    def apply(self, event: ev.Event) -> None:
        """Fold one event in. The journal's order is the only order."""
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
                self.nodes[event.node_id].signing_key = event.signing_key
            case ev.NodeRevoked():
                self.nodes[event.node_id].revoked = event.reason
            case ev.PhaseChanged():
                self.paused_from = self.phase if event.phase is Phase.PAUSED else None
                self.phase, self.reason = event.phase, event.reason
                self.entered_at.setdefault(event.phase.value, event.at)
            case ev.RoundAssigned():
                self.rounds[event.round] = event
            case ev.UnitAccepted():
                self.finished[event.unit_id] = event
            case ev.UnitRejected():
                self.finished.pop(event.unit_id, None)
            case ev.SegmentsMade():
                self.segments = event
            case _:
                raise OurError(f"no rule for the event {type(event).__name__}")

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

    def is_finished(self, key: UnitKey) -> bool:
        """Whether a result of this unit counts."""
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
            case Phase.TRAINING:
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
                ours = phase is Phase.TRAINING and seeded
            case UnitKind.EVALUATE:
                ours = phase is Phase.EVALUATING
        return ours and 0 <= key.expert < self.experts

    def open_units(self) -> list[UnitKey]:
        """Units of the present phase that nobody has finished."""
        return [key for key in self.phase_units() if not self.is_finished(key)]

    def next_job(self) -> Job | None:
        """The computation that the state waits for, if any; asked again after a restart."""
        if self.phase is Phase.ROUTING:
            if self.round == 0:
                return AssignJob("assign/1", 1)
            if self.round < self.rounds_total and not self.open_units():
                return AssignJob(f"assign/{self.round + 1}", self.round + 1, self.score_blocks())
        if self.phase is Phase.SHARDING and self.segments is None and not self.open_units():
            shards = tuple(
                self._output(UnitKey(UnitKind.SHARD, index=index), "experts")
                for index in range(self.manifest.shard_count)
            )
            return SegmentsJob("segments", shards)
        return None

    def score_blocks(self) -> tuple[BlobRef, ...]:
        """The present round's score blocks, by expert."""
        return tuple(
            self._output(UnitKey(UnitKind.ROUTER_ROUND, expert, self.round), "scores")
            for expert in range(self.experts)
        )

    def final_routers(self) -> tuple[BlobRef, ...]:
        """The finished routers' parameters, by expert."""
        return tuple(
            self._output(UnitKey(UnitKind.ROUTER_ROUND, expert, self.rounds_total), "parameters")
            for expert in range(self.experts)
        )

    def unit(self, key: UnitKey) -> Unit:
        """The unit with its inputs, as it is handed out."""
        inputs: list[BlobRef] = []
        match key.kind:
            case UnitKind.ROUTER_ROUND:
                if key.index > 1:
                    before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, key.index - 1)
                    inputs.append(self._output(before, "parameters"))
                inputs.append(_named("share", self.rounds[key.index].shares[key.expert]))
            case UnitKind.SHARD:
                inputs += [
                    _named(f"router-{expert}", ref)
                    for expert, ref in enumerate(self.final_routers())
                ]
            case UnitKind.TRAIN_EXPERT:
                if self.segments is None:
                    raise OurError(f"{key.unit_id} has no segment yet; this is a bug")
                inputs.append(_named("segment", self.segments.segments[key.expert]))
                if self.manifest.config.expert.init == "seed":
                    inputs.append(
                        _named("seed", self._output(UnitKey(UnitKind.TRAIN_SEED), "weights"))
                    )
            case UnitKind.EVALUATE:
                inputs.append(
                    _named(
                        "routed", self._output(UnitKey(UnitKind.SHARD, index=HELDOUT), "experts")
                    )
                )
                if self.manifest.config.expert.collects:
                    trained = UnitKey(UnitKind.TRAIN_EXPERT, key.expert)
                    inputs += [self._output(trained, "config"), self._output(trained, "weights")]
        return Unit(key, tuple(inputs))

    def outputs_of(self, key: UnitKey) -> tuple[str, ...]:
        """Names of the blobs that a result of this unit must bring."""
        match key.kind:
            case UnitKind.ROUTER_ROUND:
                last = key.index == self.rounds_total
                return ("parameters",) if last else ("parameters", "scores")
            case UnitKind.SHARD:
                return ("experts",)
            case UnitKind.TRAIN_SEED:
                return ("weights",)
            case UnitKind.TRAIN_EXPERT:
                collected = self.manifest.config.expert.collects
                return ("config", "weights") if collected else ()
            case _:
                return ()

    def size_limit(self, name: str) -> int:
        """Largest blob of this name in bytes, as the manifest implies."""
        manifest = self.manifest
        match name:
            case "parameters":
                return manifest.router_blob_bytes_max
            case "scores":
                return 64 + 2 * manifest.config.router.chunk_sequences
            case "experts":
                chunk = manifest.config.router.chunk_sequences
                return 64 + 2 * max(chunk, manifest.heldout_sequences)
            case "config":
                return 1 << 16
            case "weights":
                return manifest.expert_blob_bytes_max
            case _:
                return 0

    def holder(self, key: UnitKey) -> str | None:
        """The node that has this unit's large input at hand: it did the work before."""
        match key.kind:
            case UnitKind.ROUTER_ROUND:
                before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, key.index - 1)
            case UnitKind.TRAIN_EXPERT:
                before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, self.rounds_total)
            case UnitKind.EVALUATE:
                before = UnitKey(UnitKind.TRAIN_EXPERT, key.expert)
            case _:
                return None
        accepted = self.finished.get(before.unit_id)
        return accepted.node_id if accepted else None

    def pinned(self, key: UnitKey) -> bool:
        """Whether only the holder can do this unit: the expert never left its node."""
        return key.kind is UnitKind.EVALUATE and not self.manifest.config.expert.collects

    def released_by(self, event: ev.Event) -> tuple[str, ...]:
        """Digests that nothing needs any more once `event` is applied.

        Of router parameters the last two rounds and the final ones are kept, of score
        blocks those of the round being divided.
        """
        if not isinstance(event, ev.RoundAssigned) or event.round < 2:
            return ()
        released: list[str] = []
        for expert in range(self.experts):
            for name, age in (("scores", 1), ("parameters", 3)):
                key = UnitKey(UnitKind.ROUTER_ROUND, expert, event.round - age)
                accepted = self.finished.get(key.unit_id)
                outputs = accepted.outputs if accepted else ()
                released += [ref.digest for ref in outputs if ref.name == name]
        return tuple(released)

    def _output(self, key: UnitKey, name: str) -> BlobRef:
        accepted = self.finished.get(key.unit_id)
        for ref in accepted.outputs if accepted else ():
            if ref.name == name:
                return ref
        raise OurError(f"{key.unit_id} has no output '{name}'; this is a bug")


def _named(name: str, ref: BlobRef) -> BlobRef:
    return BlobRef(name, ref.digest, ref.size)
