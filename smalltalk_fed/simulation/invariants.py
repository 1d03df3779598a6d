"""The rules that no run may break, checked on what the world observes.

Rules of the rules: an observer believes messages that arrive, answers that leave and events
that are durable, and keeps its own account of leases, acceptances and acknowledgements; the
core's bookkeeping is what is being tested. Beside that it reads hard state where it is
public. Incremental checks run whenever something happens at the coordinator, the full replay
every so many events, at every crash and at the end. The first broken rule raises
`Violation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import handout
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import LONG
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.mixture.permutation import chunk_ids
from smalltalk_fed.simulation.audit_watch import AuditWatch, is_audit
from smalltalk_fed.simulation.contents import Blobs
from smalltalk_fed.simulation.rules import Rule, Violation
from smalltalk_fed.simulation.world import World


@dataclass
class _Grant:
    until: float
    process: int  # which start of the coordinator gave it


class Watch:
    """The observer of one run."""

    def __init__(self, world: World, manifest: RunManifest, blobs: Blobs) -> None:
        self._world, self._manifest, self._blobs = world, manifest, blobs
        self._lease_s = manifest.config.run.lease_s
        self._allowed = 1 + manifest.config.run.spare_copies
        # What is durable.
        self._accepted: dict[str, str] = {}  # unit -> node, less what was rejected
        self._ever_accepted: dict[str, None] = {}
        self._named: dict[str, None] = {}  # digests that durable events name
        self._enrolled: dict[str, None] = {}
        self._joined: dict[str, None] = {}
        self._revoked: dict[str, None] = {}
        self._invited: dict[str, None] = {}
        self._started: dict[str, None] = {}
        self._collected: dict[str, int] = {}
        self._phases: dict[str, None] = {}
        self.finished_at: float | None = None
        # What was said to nodes.
        self._acknowledged: dict[str, None] = {}  # units
        self._acknowledged_steps: dict[str, int] = {}
        self._acknowledged_nodes: dict[str, None] = {}
        self._grants: dict[str, dict[str, _Grant]] = {}  # unit -> node -> lease
        self._unit_of: dict[str, str] = {}
        self._last_said: dict[str, int] = {}  # node -> conversation
        self._process = 0
        self.audits = AuditWatch(manifest)

    # ----------------------------------------------------------------------- what is observed

    def handled(self, message: msg.Request, conversation: int) -> None:
        """The coordinator took `message` in without an objection."""
        match message:
            case msg.Exchange():
                self._last_said[message.node_id] = conversation
                at = message.working.unit_id if message.working else ""
                if self._unit_of.get(message.node_id, "") != at:
                    self._drop(message.node_id)
            case msg.Leave() | msg.Revoke():
                self._last_said[message.node_id] = conversation
                self._drop(message.node_id)

    def leaving(
        self, message: msg.Request, conversation: int, answer: msg.Answer, decided_at: float
    ) -> None:
        """`answer`, decided when it was, leaves the coordinator's host."""
        match answer:
            case msg.Order() if isinstance(message, msg.Exchange):
                self._order(message, conversation, answer, decided_at)
            case msg.Enrolled():
                self._need(answer.node_id in self._enrolled, f"{answer.node_id} was enrolled")
                self._acknowledged_nodes[answer.node_id] = None
            case msg.Joined():
                self._need(answer.node_id in self._joined, f"{answer.node_id} joined")
            case msg.Done() if isinstance(message, msg.MakeInvite):
                self._need(message.secret_sha256 in self._invited, "an invitation was made")
            case msg.Done() if isinstance(message, msg.Pause):
                self._need(Phase.PAUSED.value in self._phases, "the run was paused")

    def durable(self, events: Sequence[ev.Event]) -> None:
        """The disk has these events."""
        for event in events:
            self.audits.durable(event)
            match event:
                case ev.UnitAccepted():
                    if event.unit_id in self._accepted:
                        raise Violation(
                            Rule.ACCEPTED_ONCE,
                            f"{event.unit_id} of {event.node_id}, after that of "
                            f"{self._accepted[event.unit_id]}",
                        )
                    self._accepted[event.unit_id] = event.node_id
                    self._ever_accepted[event.unit_id] = None
                    self._named.update((ref.digest, None) for ref in event.outputs)
                    for node_id in list(self._grants.get(event.unit_id, ())):
                        self._drop(node_id)
                case ev.UnitRejected() | ev.BlobLost():
                    self._take_back(event.unit_id)
                case ev.NodeQuarantined():
                    for unit_id in event.undone:
                        self._take_back(unit_id)
                    self._drop(event.node_id)
                case ev.RoundAssigned():
                    self._named.update((ref.digest, None) for ref in event.shares)
                    self._check_round(event)
                case ev.SegmentsMade():
                    self._named.update((ref.digest, None) for ref in event.segments)
                    self._check_segments(event)
                case ev.WeightsCollected():
                    self._named.update((ref.digest, None) for ref in event.outputs)
                    self._collected[event.unit_id] = event.step
                case ev.UnitStarted():
                    self._started[event.unit_id] = None
                case ev.NodeEnrolled():
                    self._enrolled[event.node_id] = None
                case ev.NodeJoined():
                    self._joined[event.node_id] = None
                case ev.NodeRevoked():
                    self._revoked[event.node_id] = None
                case ev.InviteMade():
                    self._invited[event.secret_sha256] = None
                case ev.PhaseChanged():
                    self._phases[event.phase.value] = None
                    if event.phase is Phase.FINISHED:
                        self.finished_at = self._world.now

    def restarted(self, coordinator: Coordinator) -> None:
        """A new process has replayed the journal."""
        self._process += 1
        self._last_said.clear()
        self.check_kept(coordinator)

    def check_kept(self, coordinator: Coordinator) -> None:
        """All that was ever acknowledged is in hard state."""
        state = coordinator.state
        for unit_id in self._acknowledged:
            if not state.is_finished(UnitKey.parse(unit_id)):
                raise Violation(Rule.KEPT, f"{unit_id} was acknowledged and is not finished")
        for node_id in self._acknowledged_nodes:
            if node_id not in state.nodes:
                raise Violation(Rule.KEPT, f"{node_id} was told that it is enrolled")
        for unit_id, step in self._acknowledged_steps.items():
            key = UnitKey.parse(unit_id)
            if state.in_phase(key) and not state.is_finished(key):
                begins = handout.unit(state, key).start_step
                if begins < step:
                    raise Violation(
                        Rule.KEPT, f"step {step} of {unit_id} was collected, it begins at {begins}"
                    )

    def check_replay(
        self, coordinator: Coordinator, rows: Sequence[tuple[str, str]], make: type[Coordinator]
    ) -> None:
        """Hard state is the fold of what the disk has."""
        events = (ev.from_json(kind, body) for kind, body in rows)
        replayed = make.replay(self._manifest, events, self._world.now)
        if replayed.state != coordinator.state:
            raise Violation(Rule.REPLAY, _difference(replayed, coordinator))
        self.check_kept(coordinator)

    # -------------------------------------------------------------------------------- inside

    def _order(
        self, message: msg.Exchange, conversation: int, order: msg.Order, decided_at: float
    ) -> None:
        node_id = message.node_id
        if order.accepted:
            self._need(order.accepted in self._ever_accepted, f"{order.accepted} was accepted")
            # Opinions are forgotten with what they are on.
            if order.accepted in self._accepted and not is_audit(order.accepted):
                self._acknowledged[order.accepted] = None
        if order.collected and message.working:
            unit_id = message.working.unit_id
            kept = self._collected.get(unit_id, 0) >= order.collected
            self._need(
                kept or unit_id in self._ever_accepted,
                f"step {order.collected} of {unit_id} was collected",
            )
            self._acknowledged_steps[unit_id] = order.collected
        if order.stop:
            over = Phase.FINISHED.value in self._phases or Phase.FAILED.value in self._phases
            out = node_id in self._revoked or node_id in self.audits.out
            self._need(over or out, "there is no more work for it")
            return
        if order.unit is not None:
            for ref in order.unit.inputs:
                self._need(
                    ref.digest in self._named, f"'{ref.name}' of {order.unit.unit_id} exists"
                )
                if ref.digest not in self._blobs.sizes and ref.digest not in self._blobs.damaged:
                    raise Violation(
                        Rule.BLOBS, f"'{ref.name}' of {order.unit.unit_id}, given to {node_id}"
                    )
            if order.unit.key.kind in LONG:
                self._need(order.unit.unit_id in self._started, f"{order.unit.unit_id} was begun")
        if self._last_said.get(node_id) != conversation:
            return  # it has said something else since
        working = message.working.unit_id if message.working else ""
        if working and order.cancel == working:
            self._drop(node_id)
        elif working and working not in self._accepted:
            self._grant(working, node_id, decided_at, handed_out=False)
        if order.unit is not None:
            self._grant(order.unit.unit_id, node_id, decided_at, handed_out=True)

    def _grant(self, unit_id: str, node_id: str, since: float, *, handed_out: bool) -> None:
        self.audits.granted(unit_id, node_id)
        held = self._grants.setdefault(unit_id, {})
        if self._unit_of.get(node_id) not in (None, unit_id):
            self._drop(node_id)
        held[node_id] = _Grant(since + self._lease_s, self._process)
        self._unit_of[node_id] = unit_id
        live = [
            other
            for other, grant in held.items()
            if grant.until > since and (handed_out or grant.process == self._process)
        ]
        if len(live) > self._allowed:
            raise Violation(Rule.COPIES, f"{unit_id} is held by {', '.join(live)}")

    def _take_back(self, unit_id: str) -> None:
        self._accepted.pop(unit_id, None)
        self._acknowledged.pop(unit_id, None)
        self._acknowledged_steps.pop(unit_id, None)

    def _drop(self, node_id: str) -> None:
        unit_id = self._unit_of.pop(node_id, None)
        if unit_id is not None:
            self._grants[unit_id].pop(node_id, None)

    def _need(self, durable: bool, what: str) -> None:
        if not durable:
            raise Violation(
                Rule.COMMITTED, f"a node was told that {what}, and the disk has no such"
            )

    def _check_round(self, event: ev.RoundAssigned) -> None:
        manifest = self._manifest
        count = manifest.config.router.chunk_sequences
        seed, total = manifest.config.run.seed, manifest.train_sequences
        wanted = np.sort(chunk_ids(seed, total, event.round - 1, count))
        found = [self._blobs.ids(ref.digest) for ref in event.shares]
        if not np.array_equal(np.sort(np.concatenate(found)), wanted):
            raise Violation(
                Rule.ONE_SEGMENT, f"the shares of round {event.round} are not its chunk"
            )

    def _check_segments(self, event: ev.SegmentsMade) -> None:
        found = np.sort(np.concatenate([self._blobs.ids(ref.digest) for ref in event.segments]))
        total = self._manifest.train_sequences
        if not np.array_equal(found, np.arange(total)):
            raise Violation(
                Rule.ONE_SEGMENT, f"the segments hold {found.size} sequences, the corpus {total}"
            )


def _difference(replayed: Coordinator, coordinator: Coordinator) -> str:
    ours, theirs = vars(coordinator.state), vars(replayed.state)
    names = [name for name in theirs if name in ours and ours[name] != theirs[name]]
    return f"the replay has another {', '.join(names) or 'shape'}"
