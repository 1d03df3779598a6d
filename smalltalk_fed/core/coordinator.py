"""The coordinator's state machine: messages in, events, replies and jobs out.

Rules: see the package's docstring for the caller's duties. A message is checked completely
before anything changes, so an exception means that nothing did. `apply` is the only way to
hard state. Leases, presence and questions that wait are soft (`leases.py`), handing out is
`dispatch`'s part, who gets what is decided in `scheduling.py`, who may enter in
`admission.py`, processes that come in `arrivals.py`, what a node said of its units in
`reports.py`, which results are looked at by others in `auditing.py`. It never looks into a
blob: the host checks those before it calls `handle`. `secret` is what audits are drawn with;
nobody but the coordinator may know it.
"""

from __future__ import annotations

from collections.abc import Iterable

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import admission, outcomes, retention, withdrawal
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.arrivals import Arrivals
from smalltalk_fed.core.auditing import Auditing
from smalltalk_fed.core.dispatch import Dispatcher
from smalltalk_fed.core.doubles import Doubles
from smalltalk_fed.core.exclusion import Exclusion
from smalltalk_fed.core.jobs import next_job
from smalltalk_fed.core.leases import Leases, Presence, Waiting
from smalltalk_fed.core.outbox import Outbox, Ready
from smalltalk_fed.core.phases import WORKING, Phase, Trigger, allowed, next_phase
from smalltalk_fed.core.progress import next_step
from smalltalk_fed.core.reports import MAX_REASON, Reports
from smalltalk_fed.core.results import check_exchange
from smalltalk_fed.core.state import HardState
from smalltalk_fed.errors import Refused

__all__ = ["Coordinator", "Ready"]


class Coordinator:
    """One run. Not thread-safe; one caller drives it."""

    def __init__(
        self,
        manifest: RunManifest,
        now: float,
        *,
        frozen_until: float = 0.0,
        state: HardState | None = None,
        secret: bytes = b"",
    ) -> None:
        self.state = state or HardState(manifest)
        self.leases = Leases(manifest.config.run.lease_s, frozen_until, now)
        self._now = now
        self._out = Outbox(self.state)
        self.doubles = Doubles(self._out)
        self._arrivals = Arrivals(self.state, self.leases, self._out, self.doubles)
        self._dispatch = Dispatcher(self.state, self.leases, self._out)
        parts = (self.state, self.leases, self._out, self._dispatch)
        self._exclusion = Exclusion(*parts)
        self._auditing = Auditing(*parts, self._exclusion, secret)
        self._reports = Reports(*parts, self._auditing)
        self._job: jmsg.Job | None = None

    @classmethod
    def replay(
        cls,
        manifest: RunManifest,
        events: Iterable[ev.Event],
        now: float,
        state: HardState | None = None,
        secret: bytes = b"",
    ) -> Coordinator:
        """The coordinator as the journal has it: `state`, if given, and the events after it.

        Call `start` next. If work may be under way, nothing is leased for one lease time.
        """
        coordinator = cls(manifest, now, state=state, secret=secret)
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
        self._auditing.watch(now)
        self._advance(now)
        return self._out.take()

    def tick(self, now: float) -> Ready:
        """Let time pass: leases end, questions are answered, units are kept no longer."""
        self._now = now
        for lease in self.leases.expired(now):
            self._dispatch.release(lease)
            self._out.decide(
                f"lease of {lease.key.unit_id} taken from {lease.node_id}",
                f"nothing heard for {self.leases.lease_s:.0f} s",
            )
        self._pause_if(self._auditing.tick(now), now)
        self._advance(now)
        for waiting in self.leases.questions_due(now):
            self._dispatch.answer(waiting, "nothing to do yet")
        return self._out.take()

    def deadline(self) -> float | None:
        """When `tick` must be called at the latest, or None."""
        times = (self._dispatch.deadline(self._now), self._auditing.deadline())
        return min((time for time in times if time is not None), default=None)

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
                self._arrivals.join(message, conversation, now)
                self._advance(now)
            case msg.Leave():
                self._leave(message, conversation, now)
            case msg.Pause():
                self._pause(message, conversation, now)
            case msg.Resume():
                self._resume(conversation, now)
            case msg.Withdraw():
                withdrawal.take(self._out, self._dispatch, message, conversation, now)
                if isinstance(self._job, jmsg.PricesJob):
                    self._job = None  # it counts with what left; one without is asked for
                self._advance(now)
            case _:
                event, answer = admission.decide(self.state, message, now)
                if event is not None:
                    self._out.emit(event)
                if isinstance(message, msg.Revoke):
                    node = self.state.nodes[message.node_id]
                    why = f"node {node.node_id} was shut out: {node.revoked}"
                    self._exclusion.shut_out(node.node_id, why)
                    self.doubles.forget(node.node_id)
                    self._dispatch.offer(now)
                self._out.reply(conversation, answer)
        return self._out.take()

    def noticed(self) -> Ready:
        """After `handle` raised: what was noticed of the sender, for the log; never events."""
        return self._out.take()

    def job_done(self, outcome: jmsg.Outcome, now: float) -> Ready:
        """Take the result of a job in; one that is not waited for is ignored."""
        job = self._job
        if job is None or outcome.job_id != job.job_id:
            return self._out.take()
        self._now, self._job = now, None
        parts = (self._out, self._auditing, self._reports)
        self._pause_if(outcomes.take(*parts, job, outcome, now), now)
        self._advance(now)
        return self._out.take()

    def blob_damaged(self, digest: str, reason: str, now: float) -> Ready:
        """A blob that the run needs is damaged or gone: make it anew, or pause and say so."""
        self._now = now
        self._job = None  # it may have been waiting for this blob; it is asked for again
        lost = retention.remedy(self.state, digest, now, reason)
        if lost is not None:
            self._out.emit(lost)
            what = lost.unit_id or (f"the division of round {lost.round}" if lost.round else "")
            self._out.decide(f"{what or 'the segments'} must be made again", reason)
        elif digest in retention.needed_blobs(self.state):
            why = f"{reason}; put it back from a backup, then `smalltalk-coordinator resume`"
            self._pause_if(why, now)
        self._auditing.watch(now)
        self._advance(now)
        return self._out.take()

    def forget(self, conversation: int) -> None:
        """The peer of a held question is gone; there is nobody to answer."""
        for node_id, waiting in list(self.leases.waiting.items()):
            if waiting.conversation == conversation:
                self.leases.unhold(node_id)

    # ----------------------------------------------------------------------------- requests

    def _exchange(self, message: msg.Exchange, conversation: int, now: float) -> None:
        node_id, state = message.node_id, self.state
        presence = self._presence(node_id, message.incarnation, now)
        check_exchange(state, self.leases, message)
        # From here on nothing raises.
        self.leases.heard(presence, now)
        if earlier := self.leases.waiting.get(node_id):  # the node has given it up
            self._dispatch.answer(earlier, "this node asked again")
        heard = self._reports.take(message, now)
        self._pause_if(heard.stuck, now)
        if state.phase in (Phase.FINISHED, Phase.FAILED):
            stop, failed, reason = True, state.phase is Phase.FAILED, self._dispatch.ending()
        else:
            stop, failed, reason = False, False, state.reason
        at_work = message.working is not None and not heard.cancel
        if stop or at_work or not message.wants_work:
            order = msg.Order(
                reason,
                accepted=heard.accepted,
                cancel=heard.cancel,
                stop=stop,
                failed=failed,
                heartbeat_s=self._dispatch.heartbeat_s,
                collected=heard.collected,
            )
            self._out.reply(conversation, order)
        else:
            until = now + state.manifest.config.run.poll_s
            number, said = message.incarnation, (heard.accepted, heard.cancel)
            self.leases.hold(Waiting(conversation, node_id, number, until, *said))
        self._advance(now)

    def _leave(self, message: msg.Leave, conversation: int, now: float) -> None:
        if message.node_id not in self.leases.present:
            node = admission.known(self.state, message.node_id)
            why = message.reason[:MAX_REASON] or "it said goodbye"
            self._out.decide(f"node {node.node_id} takes no part", why)
            self._out.reply(conversation, msg.Left(()))
            return
        presence = self._presence(message.node_id, message.incarnation, now)
        self.leases.heard(presence, now)
        presence.gone = True
        released = self._dispatch.release_node(message.node_id)
        waiting = self.leases.waiting.get(message.node_id)
        if waiting:
            self._dispatch.answer(waiting, "this node left")
        why = message.reason[:MAX_REASON] or "it said goodbye"
        self._out.decide(f"node {message.node_id} left", why)
        self._out.reply(conversation, msg.Left(released))
        self._dispatch.offer(now)

    def _pause(self, message: msg.Pause, conversation: int, now: float) -> None:
        if not allowed(self.state.phase, Trigger.PAUSE):
            raise Refused(f"a run that is {self.state.phase} can't be paused")
        self._move(Trigger.PAUSE, message.reason[:MAX_REASON], now)
        self._out.reply(conversation, msg.Done(self.state.reason))

    def _resume(self, conversation: int, now: float) -> None:
        if not allowed(self.state.phase, Trigger.RESUME):
            raise Refused(f"a run that is {self.state.phase} can't be resumed")
        self._move(Trigger.RESUME, "resumed by the operator", now)
        self._auditing.watch(now)
        self._out.reply(conversation, msg.Done(f"resumed in phase {self.state.phase}"))
        self._advance(now)

    # ------------------------------------------------------------------------------ progress

    def _advance(self, now: float) -> None:
        """Move along the phases as far as the state allows, then hand out work."""
        while (step := next_step(self.state)) is not None:
            self._move(*step, now)
        if self._job is None and (job := next_job(self.state)) is not None:
            self._job = job
            self._out.job(job)
        self._dispatch.offer(now)

    def _move(self, trigger: Trigger, reason: str, now: float) -> None:
        target = next_phase(self.state.phase, trigger, self.state.paused_from)
        self._out.emit(ev.PhaseChanged(now, trigger, target, reason))
        self._out.decide(f"phase {target}", reason)

    def _pause_if(self, reason: str, now: float) -> None:
        """Pause the run, if there is a reason and it is not over or paused already."""
        if reason and allowed(self.state.phase, Trigger.PAUSE):
            self._move(Trigger.PAUSE, reason, now)

    def _presence(self, node_id: str, incarnation: int, now: float) -> Presence:
        admission.known(self.state, node_id)
        presence = self.leases.present.get(node_id)
        if presence is None:
            raise Refused(
                f"node {node_id} has not joined since the coordinator started; join again"
            )
        if incarnation < presence.incarnation:
            raise self.doubles.older(node_id, now)
        if incarnation > presence.incarnation:
            raise Refused(f"this process of node {node_id} has not joined yet; join first")
        return presence
