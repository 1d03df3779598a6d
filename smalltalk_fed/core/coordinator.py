"""The coordinator's state machine: messages in, events, replies and jobs out.

Rules: see the package's docstring for the caller's duties. A message is checked completely
before anything changes, so an exception means that nothing did. `apply` is the only way to
hard state. Leases, presence and questions that wait are soft (`leases.py`), who gets what
is decided in `scheduling.py`, who may enter in `admission.py`. It never looks into a blob:
the host checks those before it calls `handle`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import admission, scheduling
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.leases import Lease, Leases, Presence, Waiting
from smalltalk_fed.core.phases import WORKING, Phase, Trigger, allowed, next_phase
from smalltalk_fed.core.progress import next_step
from smalltalk_fed.core.results import check_form, check_unit
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.errors import OurError, Refused

MAX_FAILURES = 6
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
        if coordinator.state.phase in (*WORKING, Phase.PAUSED):
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
        return scheduling.deadline(self.state, self.leases, self._now)

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
        node = admission.check_join(self.state, message)
        presence = self.leases.present.get(message.node_id)
        if presence and message.incarnation < presence.incarnation:
            raise Refused(f"a newer process of node {node.node_id} is running")
        if not node.signing_key:
            self._emit(ev.NodeJoined(now, node.node_id, message.signing_key.hex()))
        if presence is None or presence.incarnation != message.incarnation:
            self.leases.present[node.node_id] = Presence(
                node.node_id, message.incarnation, now, message.capabilities
            )
            self._decide(f"node {node.node_id} joined", f"it is called '{node.name}'")
        self._reply(conversation, msg.Joined(node.node_id, "part of the run"))
        self._advance(now)

    def _exchange(self, message: msg.Exchange, conversation: int, now: float) -> None:
        presence = self._presence(message.node_id, message.incarnation)
        if message.finished is not None:
            check_form(self.state, message.finished)
        failed = UnitKey.parse(message.failed.unit_id) if message.failed else None
        working = UnitKey.parse(message.working.unit_id) if message.working else None
        for key in (failed, working):
            if key is not None:
                check_unit(self.state, key)
        # From here on nothing raises.
        presence.seen, presence.gone = now, False
        # A node that asks again has given up its earlier question.
        self.leases.waiting.pop(message.node_id, None)
        accepted, cancel = "", ""
        if message.finished is not None:
            accepted = self._accept(message.finished, message, now)
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
        while (step := next_step(self.state)) is not None:
            self._move(*step, now)
        job = self.state.next_job()
        if job is not None and self._job is None:
            self._job = job.job_id
            self._ready.jobs.append(job)
        self._offer(now)

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
