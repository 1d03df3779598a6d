"""The coordinator's process: the duties of `core`'s caller, on a simulated disk.

Rules: as the real host does. Messages that are there together are handled together; their
events are one commit, which takes the disk's time, and no answer leaves before it is
durable; meanwhile messages wait. Jobs take time. A crash loses memory and what is not
durable; a restart replays the disk and calls `start`. Crashes are addressed by the commit
that they happen at, counted over all processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator, Ready
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.units import BlobRef, Result
from smalltalk_fed.errors import PeerError, Refused
from smalltalk_fed.host.inbound import to_check
from smalltalk_fed.simulation.contents import Blobs, do_job, inputs_of
from smalltalk_fed.simulation.disk import Disk, take_snapshot
from smalltalk_fed.simulation.faults import BadBlock, BlobDamage, CommitPoint, CoordinatorCrash
from smalltalk_fed.simulation.invariants import Watch
from smalltalk_fed.simulation.measures import Measures
from smalltalk_fed.simulation.network import Call, in_words
from smalltalk_fed.simulation.rules import Rule, Violation
from smalltalk_fed.simulation.scenario import Scenario
from smalltalk_fed.simulation.world import World

_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class _Damaged:
    """A blob is damaged or gone."""

    digest: str


_Inbound = msg.Request | jmsg.Outcome | _Damaged


class CoordinatorHost:
    """One run's coordinator, through all its processes."""

    def __init__(
        self,
        world: World,
        scenario: Scenario,
        blobs: Blobs,
        watch: Watch,
        measures: Measures,
        make: type[Coordinator] = Coordinator,
    ) -> None:
        self._world, self._scenario, self._make = world, scenario, make
        self._blobs, self._watch, self._measures = blobs, watch, measures
        self.coordinator: Coordinator
        self.up = False
        self.disk = Disk(scenario.commit_s)
        self._crashes = [f for f in scenario.faults if isinstance(f, CoordinatorCrash)]
        self._bad_blocks = {f.job: f for f in scenario.faults if isinstance(f, BadBlock)}
        self._damages = [f for f in scenario.faults if isinstance(f, BlobDamage)]
        self.on_damage: Callable[[BlobRef, float], None] = lambda ref, repair_s: None
        self._commits = self._jobs = self._conversations = 0
        self._clock_offset_s = 0.0
        self._process = 0
        self._inbox: deque[tuple[_Inbound, int]] = deque()
        self._open: dict[int, tuple[msg.Request, Call | None]] = {}
        self._committing = False
        self._wake_at = float("inf")
        self._replayed_rows = 0

    def now(self) -> float:
        """What this machine's clock says."""
        return self._world.now + self._clock_offset_s

    # ------------------------------------------------------------------------- its processes

    def boot(self) -> None:
        """Start a process on what the disk has."""
        self.up, self._committing, self._wake_at = True, False, float("inf")
        self._process += 1
        self._inbox.clear()
        self._open.clear()
        manifest = self._scenario.manifest
        secret = f"audits of seed {self._scenario.seed}".encode()
        self.coordinator = self.disk.recover(manifest, self.now(), self._make, secret)
        if self._process > 1:
            self._measures.restarts += 1
            self._watch.restarted(self.coordinator)
        self._world.note(f"coordinator starts with {len(self.disk.rows)} events")
        ready = self.coordinator.start(self.now())
        for digest in needed_blobs(self.coordinator.state):
            if digest not in self._blobs.sizes:
                self._inbox.append((_Damaged(digest), 0))
        self._settle(ready, self.coordinator.deadline())

    def crash(self, down_s: float) -> None:
        """kill -9; it is started again after `down_s`."""
        if not self.up:
            return
        self._world.note("coordinator is killed")
        self.up = False
        self._process += 1
        for _, call in self._open.values():
            if call is not None:
                call.line.reset(call)
        self._open.clear()
        self._world.after(down_s, self.boot)

    # ------------------------------------------------------------------------------ messages

    def receive(self, message: msg.Request, call: Call | None) -> None:
        """A request arrives; None: a duplicate whose answer nobody gets."""
        self._conversations += 1
        if call is not None:
            call.conversation = self._conversations
        self._open[self._conversations] = (message, call)
        self._inbox.append((message, self._conversations))
        if not self._committing:
            self._turn()

    def hang_up(self, call: Call) -> None:
        """Whoever asked is gone."""
        if self.up and self._open.pop(call.conversation, None) is not None:
            self.coordinator.forget(call.conversation)

    def _check_uploaded(self, result: Result) -> None:
        for ref in result.outputs:
            if ref.digest not in self._blobs.sizes:
                raise Refused(f"output '{ref.name}' was not uploaded; put it first")

    def _turn(self) -> None:
        """Everything that is there now: one commit, then the answers."""
        ready = Ready()
        while self._inbox:
            message, conversation = self._inbox.popleft()
            if isinstance(message, _Damaged):
                why = f"blob {message.digest[:12]} is damaged"
                ready.add(self.coordinator.blob_damaged(message.digest, why, self.now()))
                continue
            if isinstance(message, jmsg.Outcome):
                self._world.note(f"job {message.job_id} ends")
                ready.add(self.coordinator.job_done(message, self.now()))
                continue
            try:
                for result in to_check(self.coordinator.state, message):
                    self._check_uploaded(result)
                part = self.coordinator.handle(message, conversation, self.now())
            except PeerError as error:
                _, call = self._open.pop(conversation, (None, None))
                if call is not None:
                    call.answer(error)
                ready.add(self.coordinator.noticed())
                continue
            self._watch.handled(message, conversation)
            ready.add(part)
        due = self.coordinator.deadline()
        if due is not None and due <= self.now() + _ROUNDING_S:
            ready.add(self.coordinator.tick(max(due, self.now())))
            after = self.coordinator.deadline()
            if after is not None and after <= due:
                raise Violation(Rule.TIME, f"it stays {due - self.now():.3f} s from now")
            due = after
        self._settle(ready, due)

    # -------------------------------------------------------------------------------- commits

    def _settle(self, ready: Ready, due: float | None) -> None:
        """Commit, then answer; `due` is the coordinator's deadline."""
        if not ready.events:
            self._release(ready.replies, self._world.now)
            self._finish(ready, due)
            return
        self._commits += 1
        crash = next((c for c in self._crashes if c.commit == self._commits), None)
        if crash is not None and crash.point is CommitPoint.LOST:
            self._die(crash)
            return
        self._committing = True
        decided_at = self._world.now
        self._world.after(
            self.disk.commit_s, self._durable, ready, crash, decided_at, self._process
        )

    def _durable(
        self, ready: Ready, crash: CoordinatorCrash | None, decided_at: float, process: int
    ) -> None:
        if process != self._process:
            return
        for kind, body in self.disk.write(ready.events):
            self._world.note(f"{kind} {body}")
        self._watch.durable(ready.events)
        if crash is not None:
            self._watch.check_replay(self.coordinator, self.disk.rows, self._make)
            half = len(ready.replies) // 2
            sent = {CommitPoint.DURABLE: 0, CommitPoint.HALF_REPLIED: half}
            self._release(ready.replies[: sent.get(crash.point, len(ready.replies))], decided_at)
            self._die(crash)
            return
        self._committing = False
        self._release(ready.replies, decided_at)
        for digest in ready.released:
            self._blobs.drop(digest)
        self._maybe_snapshot()
        self._damage()
        self._finish(ready, self.coordinator.deadline())

    def _maybe_snapshot(self) -> None:
        """As the real host: the state as of the last commit, kept beside the journal later."""
        if self.disk.rows_since_snapshot >= self._scenario.snapshot_events:
            taken, covered = take_snapshot(self.coordinator.state), len(self.disk.rows)
            self._world.after(1.0, self._keep_snapshot, covered, taken, self._process)

    def _keep_snapshot(self, covered: int, taken: str, process: int) -> None:
        if process == self._process:
            self.disk.keep_snapshot(covered, taken)

    def _damage(self) -> None:
        """A blob is found damaged; what becomes of it is the next turn's first message."""
        for fault in self._damages:
            needed = list(needed_blobs(self.coordinator.state).values())
            if fault.commit != self._commits or not needed:
                continue
            ref = needed[int(fault.which * len(needed))]
            self._world.note(f"blob {ref.digest[:12]} ({ref.name}) is damaged")
            self._blobs.damage(ref.digest)
            self._inbox.append((_Damaged(ref.digest), 0))
            self.on_damage(ref, fault.repair_s)

    def _die(self, crash: CoordinatorCrash) -> None:
        self._clock_offset_s += crash.clock_jump_s
        self.crash(crash.down_s)

    def _release(self, replies: Sequence[msg.Reply], decided_at: float) -> None:
        """Let answers go."""
        for reply in replies:
            message, call = self._open.pop(reply.conversation, (None, None))
            if message is None:
                continue  # whoever asked is gone
            self._watch.leaving(message, reply.conversation, reply.answer, decided_at)
            self._world.note(in_words(message, reply.answer))
            if call is not None:
                call.answer(reply.answer)

    def _finish(self, ready: Ready, due: float | None) -> None:
        """After the answers: jobs, what came meanwhile, and the next deadline."""
        for job in ready.jobs:
            self._jobs += 1
            job_s = self._scenario.work.job_s
            self._world.after(job_s, self._job_done, job, self._jobs, self._process)
        if len(self.disk.rows) - self._replayed_rows >= self._scenario.replay_every_events:
            self.check_replay()
        if self._inbox:
            self._turn()
        elif due is not None:
            due = max(due - self._clock_offset_s, self._world.now)
            if due < self._wake_at:
                self._wake_at = due
                self._world.at(due, self._wake, due, self._process)

    def check_replay(self) -> None:
        """Hard state against the disk; only while nothing is being committed."""
        if not self._committing and self.up:
            self._replayed_rows = len(self.disk.rows)
            self._watch.check_replay(self.coordinator, self.disk.rows, self._make)

    def _wake(self, due: float, process: int) -> None:
        if process != self._process or due != self._wake_at:
            return
        self._wake_at = float("inf")
        if not self._committing:
            self._turn()

    def _job_done(self, job: jmsg.Job, number: int, process: int) -> None:
        if process != self._process:
            return
        bad = self._bad_blocks.get(number)
        gone = next((ref for ref in inputs_of(job) if ref.digest not in self._blobs.sizes), None)
        if gone is not None:
            self._tell(_Damaged(gone.digest))
            return
        outcome: jmsg.Outcome
        if bad is not None and (culprit := bad.culprit(job)):
            outcome = jmsg.JobFailed(job.job_id, "its bytes can't be used", culprit)
        else:
            outcome = do_job(self._scenario.manifest, job, self._blobs)
        self._tell(outcome)

    def _tell(self, message: _Inbound) -> None:
        self._inbox.append((message, 0))
        if not self._committing:
            self._turn()
