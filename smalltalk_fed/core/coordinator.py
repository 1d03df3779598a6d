"""The coordinator's state machine: messages in, events, replies and jobs out.

Rules: see the package's docstring for the caller's duties. A message is checked completely
before anything changes, so an exception means that nothing did. `apply` is the only way to
hard state. Leases, presence and questions that wait are soft (`leases.py`), who gets what
is decided in `scheduling.py`, who may enter in `admission.py`. It never looks into a blob:
the host checks those before it calls `handle`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS, RunManifest
from smalltalk_fed.core import admission, scheduling
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.leases import Lease, Leases, Presence, Waiting
from smalltalk_fed.core.phases import Phase, Trigger, allowed, next_phase
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.errors import Malformed, OurError, Refused, TooLarge

MAX_FAILURES = 6
MAX_FIGURES = 64
MAX_REASON = 500


@dataclass
class Ready:
    """What the caller must do now, in this order: commit, reply, run."""

    events: list[ev.Event] = field(default_factory=list)
    replies: list[msg.Reply] = field(default_factory=list)
    jobs: list[msg.Job] = field(default_factory=list)
    released: list[str] = field(default_factory=list)  # digests that nothing needs any more
    decisions: list[msg.Decision] = field(default_factory=list)


class Coordinator:
    """One run. Not thread-safe; one caller drives it."""

    def __init__(self, manifest: RunManifest, now: float, *, frozen_until: float = 0.0) -> None:
        self.state = HardState(manifest)
        self.leases = Leases(manifest.config.run.lease_s, frozen_until)
        self._now = now
        self._ready = Ready()
        self._job: str | None = None

    @classmethod
    def replay(cls, manifest: RunManifest, events: Iterable[ev.Event], now: float) -> Coordinator:
        """The coordinator as the journal has it. Call `start` next.

        If work may be under way, nothing is leased for one lease time.
        """
        coordinator = cls(manifest, now)
        for event in events:
            coordinator.apply(event)
        if coordinator.state.open_units():
            coordinator.leases.frozen_until = now + coordinator.leases.lease_s
        return coordinator

    def apply(self, event: ev.Event) -> None:
        """Change hard state; the only way to."""
        self.state.apply(event)

    # -------------------------------------------------------------------------- driving it

    def start(self, now: float) -> Ready:
        """Once after construction or replay: the work that was left undone."""
        self._now = now
        self._advance(now)
        return self._take()

    def tick(self, now: float) -> Ready:
        """Let time pass: leases end, questions are answered, reservations lapse."""
        self._now = now
        for lease in self.leases.expired(now):
            self.leases.release(lease)
            self._decide(
                f"lease of {lease.key.unit_id} taken from {lease.node_id}",
                f"nothing heard for {self.leases.lease_s:.0f} s",
            )
        self._offer(now)
        for waiting in [w for w in self.leases.waiting.values() if w.until <= now]:
            self._answer(waiting, "nothing to do yet")
        return self._take()

    def deadline(self) -> float | None:
        """When `tick` must be called at the latest, or None."""
        times = [] if (due := self.leases.deadline()) is None else [due]
        if self.leases.waiting:
            later: list[float | None] = [self.leases.frozen_until]
            if scheduling.unleased(self.state, self.leases):
                later += [
                    presence.seen + scheduling.RESERVE_S
                    for presence in self.leases.present.values()
                    if not presence.gone and presence.node_id not in self.leases.waiting
                ]
            later += [
                scheduling.copy_due(self.leases, held[0]) for held in self.leases.by_unit.values()
            ]
            times += [time for time in later if time is not None and time > self._now]
        return min(times, default=None)

    def handle(self, message: msg.Request, conversation: int, now: float) -> Ready:
        """Take one request in.

        Raises:
            PeerError: the message is not acceptable; nothing changed.
        """
        self._now = max(self._now, now)
        match message:
            case msg.Exchange():
                self._exchange(message, conversation, now)
            case msg.Join():
                self._join(message, conversation, now)
            case msg.Leave():
                self._leave(message, conversation, now)
            case msg.Pause():
                self._pause(message, conversation, now)
            case msg.Resume():
                self._resume(conversation, now)
            case msg.Enrol() | msg.MakeInvite() | msg.CancelInvite() | msg.Revoke():
                event, answer = admission.decide(self.state, message, now)
                if event is not None:
                    self._emit(event)
                if isinstance(message, msg.Revoke):
                    self._shut_out(message.node_id, now)
                self._reply(conversation, answer)
        return self._take()

    def job_done(self, outcome: msg.JobFinished | msg.JobFailed, now: float) -> Ready:
        """Take the result of a job in; one that is not waited for is ignored."""
        if outcome.job_id != self._job:
            return self._take()
        self._job = None
        match outcome:
            case msg.JobFinished() if outcome.job_id == "segments":
                self._emit(ev.SegmentsMade(now, outcome.outputs, dict(outcome.figures)))
            case msg.JobFinished():
                number = int(outcome.job_id.removeprefix("assign/"))
                event = ev.RoundAssigned(now, number, outcome.outputs, dict(outcome.figures))
                self._ready.released += self.state.released_by(event)
                self._emit(event)
            case msg.JobFailed() if outcome.culprit:
                self._emit(ev.UnitRejected(now, outcome.culprit, outcome.reason))
                self._count_failure(UnitKey.parse(outcome.culprit), "", outcome.reason, now)
            case msg.JobFailed():
                self._move(Trigger.FAIL, f"{outcome.job_id}: {outcome.reason}", now)
        self._advance(now)
        return self._take()

    def forget(self, conversation: int) -> None:
        """The peer of a held question is gone; there is nobody to answer."""
        for node_id, waiting in list(self.leases.waiting.items()):
            if waiting.conversation == conversation:
                del self.leases.waiting[node_id]

    # ----------------------------------------------------------------------------- requests

    def _join(self, message: msg.Join, conversation: int, now: float) -> None:
        node = admission.known(self.state, message.node_id)
        if message.protocol_version not in PROTOCOL_VERSIONS:
            supported = ", ".join(str(version) for version in PROTOCOL_VERSIONS)
            raise Refused(
                f"this node speaks protocol version {message.protocol_version}, the coordinator "
                f"{supported}; install a matching version of smalltalk-fed"
            )
        if len(message.signing_key) != 32:
            raise Malformed("the signing key must be a raw Ed25519 public key of 32 bytes")
        wanted = self.state.manifest.corpus_digest
        if message.capabilities.corpus_digest != wanted:
            has = message.capabilities.corpus_digest[:12] or "none"
            raise Refused(
                f"the run trains on the corpus {wanted[:12]}, this node has {has}; prepare or "
                "copy the run's corpus and name its folder with --corpus"
            )
        signing_key = message.signing_key.hex()
        if node.signing_key and node.signing_key != signing_key:
            raise Refused(f"node {node.node_id} is registered with another signing key")
        presence = self.leases.present.get(message.node_id)
        if presence and message.incarnation < presence.incarnation:
            raise Refused(f"a newer process of node {node.node_id} is running")
        if not node.signing_key:
            self._emit(ev.NodeJoined(now, node.node_id, signing_key))
        if presence is None or presence.incarnation != message.incarnation:
            self.leases.present[node.node_id] = Presence(
                node.node_id, message.incarnation, now, message.capabilities
            )
            self._decide(f"node {node.node_id} joined", f"it is called '{node.name}'")
        self._reply(conversation, msg.Joined(node.node_id, "part of the run"))
        self._advance(now)

    def _exchange(self, message: msg.Exchange, conversation: int, now: float) -> None:
        presence = self._presence(message.node_id, message.incarnation)
        result = self._checked(message.finished) if message.finished else None
        failed = UnitKey.parse(message.failed.unit_id) if message.failed else None
        working = UnitKey.parse(message.working.unit_id) if message.working else None
        for key in (failed, working):
            self._known_unit(key)
        # From here on nothing raises.
        presence.seen, presence.gone = now, False
        # A node that asks again has given up its earlier question.
        self.leases.waiting.pop(message.node_id, None)
        accepted, cancel = "", ""
        if result is not None:
            accepted = self._accept(result, message, now)
        if failed is not None and message.failed is not None:
            self._failed(failed, message.node_id, message.failed.reason[:MAX_REASON], now)
        if working is not None and message.working is not None:
            cancel = self._renew(working, message.working, message.node_id, now)
        elif message.node_id in self.leases.by_node:
            # It says that it is at nothing: its process began anew or gave up.
            self.leases.drop_node(message.node_id)
        if self.state.phase is Phase.FINISHED or self.state.phase is Phase.FAILED:
            reason = f"the run is {self.state.phase}: {self.state.reason}"
            ill = self.state.phase is Phase.FAILED
            order = msg.Order(reason, accepted=accepted, cancel=cancel, stop=True, failed=ill)
            self._reply(conversation, order)
        elif not message.wants_work or (working is not None and not cancel):
            order = msg.Order(
                self.state.reason, accepted=accepted, cancel=cancel, heartbeat_s=self._heartbeat_s
            )
            self._reply(conversation, order)
        else:
            until = now + self.state.manifest.config.run.poll_s
            self.leases.waiting[message.node_id] = Waiting(
                conversation, message.node_id, message.incarnation, until, accepted, cancel
            )
        self._advance(now)

    def _leave(self, message: msg.Leave, conversation: int, now: float) -> None:
        presence = self._presence(message.node_id, message.incarnation)
        presence.gone = True
        released = self.leases.drop_node(message.node_id)
        waiting = self.leases.waiting.get(message.node_id)
        if waiting:
            self._answer(waiting, "this node left")
        self._decide(
            f"node {message.node_id} left", message.reason[:MAX_REASON] or "it said goodbye"
        )
        self._reply(conversation, msg.Left(released))
        self._offer(now)

    def _pause(self, message: msg.Pause, conversation: int, now: float) -> None:
        if not allowed(self.state.phase, Trigger.PAUSE):
            raise Refused(f"a run that is {self.state.phase} can't be paused")
        self._move(Trigger.PAUSE, message.reason[:MAX_REASON], now)
        self._reply(conversation, msg.Done(self.state.reason))

    def _resume(self, conversation: int, now: float) -> None:
        if not allowed(self.state.phase, Trigger.RESUME):
            raise Refused(f"a run that is {self.state.phase} can't be resumed")
        self._move(Trigger.RESUME, "resumed by the operator", now)
        self._reply(conversation, msg.Done(f"resumed in phase {self.state.phase}"))
        self._advance(now)

    # ------------------------------------------------------------------------------- results

    def _checked(self, result: Result) -> Result:
        """Form of a result: known unit, the right outputs, sizes within limits, finite figures."""
        key = UnitKey.parse(result.unit_id)
        self._known_unit(key)
        names = tuple(ref.name for ref in result.outputs)
        if names != self.state.outputs_of(key):
            expected = ", ".join(self.state.outputs_of(key)) or "none"
            raise Malformed(f"{result.unit_id} must bring these outputs: {expected}")
        for ref in result.outputs:
            limit = self.state.size_limit(ref.name)
            if ref.size > limit:
                raise TooLarge(f"output '{ref.name}' of {result.unit_id} is over {limit} bytes")
        if len(result.figures) > MAX_FIGURES:
            raise TooLarge(f"{result.unit_id} has more than {MAX_FIGURES} figures")
        if not all(math.isfinite(value) for value in result.figures.values()):
            raise Malformed(f"{result.unit_id} has a figure that is not a finite number")
        return result

    def _known_unit(self, key: UnitKey | None) -> None:
        if key is None or key.unit_id in self.state.finished:
            return
        if not self.state.in_phase(key):
            raise Refused(f"{key.unit_id} is not part of the run's present phase")

    def _accept(self, result: Result, message: msg.Exchange, now: float) -> str:
        key = UnitKey.parse(result.unit_id)
        lease = self.leases.by_node.get(message.node_id)
        if key.unit_id in self.state.finished:  # said again, or a copy was faster
            if lease and lease.key == key:
                self.leases.release(lease)
            return result.unit_id
        seconds = self.leases.finish(key, message.node_id, now)
        self._emit(
            ev.UnitAccepted(
                now,
                result.unit_id,
                message.node_id,
                message.incarnation,
                result.outputs,
                dict(result.figures),
                result.signature.hex(),
                seconds,
            )
        )
        return result.unit_id

    def _failed(self, key: UnitKey, node_id: str, reason: str, now: float) -> None:
        lease = self.leases.by_node.get(node_id)
        if lease and lease.key == key:
            self.leases.release(lease)
        if key.unit_id not in self.state.finished:
            self._count_failure(key, node_id, reason, now)

    def _count_failure(self, key: UnitKey, node_id: str, reason: str, now: float) -> None:
        failures = self.leases.failures.setdefault(key, [])
        failures.append((node_id, reason))
        self._decide(f"{key.unit_id} failed on {node_id or 'the coordinator'}", reason)
        if len(failures) >= MAX_FAILURES and allowed(self.state.phase, Trigger.FAIL):
            why = f"{key.unit_id} failed {len(failures)} times, last on {node_id}: {reason}"
            self._move(Trigger.FAIL, why, now)

    def _renew(self, key: UnitKey, working: msg.Working, node_id: str, now: float) -> str:
        """Prolong a lease, or say which unit to drop."""
        if key.unit_id in self.state.finished:  # somebody else was faster
            self.leases.drop_node(node_id)
            return key.unit_id
        lease = self.leases.by_node.get(node_id)
        if lease is None or lease.key != key:
            self.leases.drop_node(node_id)
            others = len(self.leases.by_unit.get(key, ()))
            if others > self.state.manifest.config.run.spare_copies:
                return key.unit_id
            # After a restart, or after its lease ran out and nobody else took the unit.
            lease = self.leases.grant(key, node_id, now, copy=bool(others))
            self._decide(f"{key.unit_id} stays with {node_id}", "it says that it is at it")
        lease.until = now + self.leases.lease_s
        lease.fraction = working.fraction
        lease.figures = dict(working.figures)
        return ""

    # ------------------------------------------------------------------------------ progress

    def _advance(self, now: float) -> None:
        """Move along the phases as far as the state allows, then hand out work."""
        while (step := self._next_step()) is not None:
            self._move(*step, now)
        job = self.state.next_job()
        if job is not None and self._job is None:
            self._job = job.job_id
            self._ready.jobs.append(job)
        self._offer(now)

    def _next_step(self) -> tuple[Trigger, str] | None:
        state = self.state
        match state.phase:
            case Phase.RECRUITING:
                needed = state.manifest.config.run.nodes_to_start
                joined = sum(1 for n in state.nodes.values() if n.signing_key and not n.revoked)
                if joined >= needed:
                    return Trigger.ENOUGH_NODES, f"{joined} of {needed} nodes joined"
            case Phase.ROUTING if state.round == state.rounds_total and not state.open_units():
                return Trigger.ROUTERS_DONE, f"{state.rounds_total} rounds done"
            case Phase.SHARDING if state.segments is not None:
                return Trigger.SEGMENTS_MADE, "every training sequence has its expert"
            case Phase.TRAINING if not state.open_units():
                return Trigger.EXPERTS_DONE, f"{state.experts} experts trained"
            case Phase.EVALUATING if not state.manifest.heldout_sequences:
                return Trigger.EVALUATED, "the corpus has no held-out text"
            case Phase.EVALUATING if not state.open_units():
                return Trigger.EVALUATED, "every expert is evaluated"
        return None

    def _offer(self, now: float) -> None:
        """Give open units to waiting nodes."""
        leases, state = self.leases, self.state
        if state.phase in (Phase.FINISHED, Phase.FAILED):
            for waiting in list(leases.waiting.values()):
                failed = state.phase is Phase.FAILED
                reason = f"the run is {state.phase}: {state.reason}"
                self._answer(waiting, reason, stop=True, failed=failed)
            return
        if now < leases.frozen_until or not leases.waiting:
            return
        for waiting in list(leases.waiting.values()):
            candidates = scheduling.unleased(state, leases)
            if not candidates:
                break
            chosen = scheduling.choose(state, leases, waiting.node_id, candidates, now)
            if chosen is not None:
                self._lease(waiting, chosen[0], chosen[1], now)
        if not scheduling.unleased(state, leases):
            for waiting in list(leases.waiting.values()):
                slow = scheduling.straggler(state, leases, waiting.node_id, now)
                if slow is not None:
                    self._lease(waiting, slow[0].key, slow[1], now, copy=True)

    def _lease(
        self, waiting: Waiting, key: UnitKey, reason: str, now: float, *, copy: bool = False
    ) -> None:
        lease: Lease = self.leases.grant(key, waiting.node_id, now, copy=copy)
        what = "a copy of " if copy else ""
        self._decide(f"{what}{key.unit_id} goes to {lease.node_id}", reason)
        self._answer(waiting, reason, unit_key=key)

    def _answer(
        self,
        waiting: Waiting,
        reason: str,
        *,
        unit_key: UnitKey | None = None,
        stop: bool = False,
        failed: bool = False,
    ) -> None:
        self.leases.waiting.pop(waiting.node_id, None)
        order = msg.Order(
            reason,
            accepted=waiting.accepted,
            cancel=waiting.cancel,
            unit=self.state.unit(unit_key) if unit_key else None,
            stop=stop,
            failed=failed,
            heartbeat_s=self._heartbeat_s,
        )
        self._reply(waiting.conversation, order)

    def _shut_out(self, node_id: str, now: float) -> None:
        self.leases.drop_node(node_id)
        waiting = self.leases.waiting.get(node_id)
        if waiting:
            self._answer(waiting, "this node was revoked", stop=True, failed=True)
        self.leases.present.pop(node_id, None)
        self._offer(now)

    # --------------------------------------------------------------------------------- small

    @property
    def _heartbeat_s(self) -> float:
        return self.leases.lease_s / 4

    def _presence(self, node_id: str, incarnation: int) -> Presence:
        admission.known(self.state, node_id)
        presence = self.leases.present.get(node_id)
        if presence is None:
            raise Refused(
                f"node {node_id} has not joined since the coordinator started; join again"
            )
        if incarnation < presence.incarnation:
            raise Refused(f"a newer process of node {node_id} is running")
        if incarnation > presence.incarnation:
            raise Refused(f"this process of node {node_id} has not joined yet; join first")
        return presence

    def _move(self, trigger: Trigger, reason: str, now: float) -> None:
        target = next_phase(self.state.phase, trigger, self.state.paused_from)
        self._emit(ev.PhaseChanged(now, trigger, target, reason))
        self._decide(f"phase {target}", reason)

    def _emit(self, event: ev.Event) -> None:
        self.apply(event)
        self._ready.events.append(event)

    def _reply(self, conversation: int, answer: msg.Answer) -> None:
        self._ready.replies.append(msg.Reply(conversation, answer))

    def _decide(self, what: str, reason: str) -> None:
        self._ready.decisions.append(msg.Decision(what, reason))

    def _take(self) -> Ready:
        ready, self._ready = self._ready, Ready()
        if len(ready.replies) != len({reply.conversation for reply in ready.replies}):
            raise OurError("a conversation was answered twice; this is a bug")
        return ready
