"""The loop around the core: take messages in, commit, then answer; run jobs; let time pass.

Rules: one event loop drives one coordinator. Messages that are there together are handled
together and committed in one transaction (group commit); no answer leaves before its events
are durable. A commit or a job that finds no room, or a bug in the core, stops the host:
`wait_stopped` raises. Every `snapshot_events` events the state is kept beside them, written
aside; one that can't be written is logged and tried again later. Jobs run in a worker
process. A blob that is damaged or gone is the core's matter (`blob_damaged`). It knows
neither gRPC nor Flower.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator, Ready
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.redos import is_redo
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.silo_events import ExpertWithdrawn
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.errors import DamagedBlob, OurError, PeerError, SmalltalkError, WorldError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.checks import check_result
from smalltalk_fed.host.clock import Clock
from smalltalk_fed.host.database import DamagedJournal
from smalltalk_fed.host.inbound import Inbound, LostBlob, still_checked, to_check
from smalltalk_fed.host.journal import JournalLike
from smalltalk_fed.host.loose import Loose, named_by
from smalltalk_fed.host.lost_blobs import is_news, settle
from smalltalk_fed.host.recovery import keep_snapshot, recover, take_snapshot
from smalltalk_fed.host.workers import Worker
from smalltalk_fed.wire.limits import INBOX_MAX, RunLimits

log = logging.getLogger("smalltalk.host")

SNAPSHOT_EVENTS = 10_000


class Host:
    """One run's coordinator, alive. Create it inside a running event loop."""

    def __init__(
        self,
        manifest: RunManifest,
        journal: JournalLike,
        blob_folder: Path,
        clock: Clock,
        *,
        on_decision: Callable[[msg.Decision], None] = lambda decision: None,
        on_finished: Callable[[Coordinator, BlobStore], None] = lambda coordinator, blobs: None,
        snapshot_events: int = SNAPSHOT_EVENTS,
        executor: Executor | None = None,
        audit_secret: bytes = b"",
    ) -> None:
        """`executor`: where jobs run instead of in a worker process; `stop` shuts it down.

        `audit_secret`: what audits are drawn with; whoever knows it foresees them.
        """
        self.manifest = manifest
        self.clock = clock
        self.blobs = BlobStore(blob_folder)
        self.blobs.clean()
        self.coordinator, self._snapshot_at = recover(manifest, journal, clock.now(), audit_secret)
        self.loose = Loose(blob_folder / "uploads", self.blobs, RunLimits.of(manifest).disk)
        self.loose.forget(needed_blobs(self.coordinator.state))
        self._journal = journal
        # A thread of its own: a commit must not queue behind uploads that are written.
        self._commits = ThreadPoolExecutor(1, "journal")
        self._snapshot_events = snapshot_events
        self._snapshot: asyncio.Task[None] | None = None
        self._worker = Worker(manifest, blob_folder, executor)
        self._on_decision = on_decision
        self._on_finished = on_finished
        self._inbox: deque[Inbound] = deque()
        self._wake = asyncio.Event()
        self._answers: dict[int, asyncio.Future[msg.Answer]] = {}
        self._conversations = 0
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._finished_seen = False
        self._trouble: SmalltalkError | None = None  # of a job; it ends the loop

    # --------------------------------------------------------------------------- from outside

    def start(self) -> None:
        """Begin the loop; work left undone by an earlier process goes on."""
        self._loop_task = asyncio.create_task(self._loop())

    async def ask(self, message: msg.Request) -> msg.Answer:
        """Hand `message` in and wait for its answer; an idle node's question is held.

        Raises:
            PeerError: the message is not acceptable.
            WorldError: the host is stopping.
        """
        if self._stopping:
            raise WorldError("the coordinator is stopping; ask again in a moment")
        if len(self._inbox) >= INBOX_MAX:
            raise WorldError(
                f"{INBOX_MAX} messages wait for the coordinator already; ask again in a moment"
            )
        checked = to_check(self.coordinator.state, message)
        for result in checked:
            redo = is_redo(self.coordinator.state, UnitKey.parse(result.unit_id))
            await asyncio.to_thread(check_result, self.manifest, result, self.blobs, redo)
        self._conversations += 1
        conversation = self._conversations
        future: asyncio.Future[msg.Answer] = asyncio.get_running_loop().create_future()
        self._answers[conversation] = future
        self._inbox.append(Inbound(message, conversation, checked))
        self._wake.set()
        try:
            return await future
        finally:
            if self._answers.pop(conversation, None) is not None:
                self.coordinator.forget(conversation)  # the peer is gone

    def blob_lost(self, digest: str) -> None:
        """A blob turned out damaged or gone: let the core find a remedy, if it needs the blob."""
        self._tell(LostBlob(digest))

    @property
    def worker_cpu_s(self) -> float:
        """CPU seconds of the present worker process, as of its last job."""
        return self._worker.cpu_s

    def keep(self, key: str, value: object) -> None:
        """Keep a JSON value in the journal's file beside the events (such as the ledger)."""
        self._journal.put(key, value)

    async def stop(self) -> None:
        """End the loop; questions that are held fail, the journal stays consistent."""
        self._stopping = True
        self._wake.set()
        if self._loop_task:
            with contextlib.suppress(SmalltalkError):
                await self._loop_task
        for task in list(self._tasks):
            task.cancel()
        if self._snapshot:
            await self._snapshot  # the journal is closed next
        self._worker.stop()
        self._commits.shutdown()

    async def wait_stopped(self) -> None:
        """Wait until the loop ends.

        Raises:
            SmalltalkError: what ended it, if it was not `stop`.
        """
        if self._loop_task:
            await asyncio.shield(self._loop_task)

    # --------------------------------------------------------------------------------- inside

    async def _loop(self) -> None:
        try:
            await self._settle(self.coordinator.start(self.clock.now()))
            for digest in settle(self.coordinator.state, self.blobs):
                self.blob_lost(digest)
            while not self._stopping:
                await self._wait()
                await self._turn()
        finally:
            self._stopping = True
            stopping = WorldError("the coordinator is stopping; ask again in a moment")
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(stopping)

    async def _wait(self) -> None:
        deadline = self.coordinator.deadline()
        timeout = None if deadline is None else max(0.0, deadline - self.clock.now())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout)
        self._wake.clear()

    async def _turn(self) -> None:
        """Everything that is there now: one transaction, then the answers."""
        if self._trouble:
            raise self._trouble
        batch, self._inbox = self._inbox, deque()
        ready = Ready()
        for inbound in batch:
            now = self.clock.now()
            try:
                part = self._handle(inbound, now)
            except PeerError as error:
                future = self._answers.get(inbound.conversation)
                if future and not future.done():
                    future.set_exception(error)
                ready.add(self.coordinator.noticed())
                continue
            ready.add(part)
        deadline = self.coordinator.deadline()
        if deadline is not None and deadline <= self.clock.now():
            ready.add(self.coordinator.tick(self.clock.now()))
        await self._settle(ready)

    def _handle(self, inbound: Inbound, now: float) -> Ready:
        match inbound.message:
            case jmsg.JobFinished() | jmsg.JobFailed() | jmsg.Suspects() | jmsg.Judged():
                return self.coordinator.job_done(inbound.message, now)
            case LostBlob():
                return self._lost(inbound.message, now)
            case _ as message:
                still_checked(self.coordinator.state, message, inbound.checked)
                return self.coordinator.handle(message, inbound.conversation, now)

    async def _settle(self, ready: Ready) -> None:
        """Commit, then answer, then start what was asked for."""
        if ready.events:
            await asyncio.get_running_loop().run_in_executor(
                self._commits, self._journal.append, ready.events
            )
            self.loose.forget(named_by(ready.events))
            self._maybe_snapshot()
        for reply in ready.replies:
            future = self._answers.get(reply.conversation)
            if future and not future.done():
                future.set_result(reply.answer)
        for decision in ready.decisions:
            self._on_decision(decision)
        for digest in ready.released:
            self.blobs.drop(digest)
        if any(isinstance(event, ExpertWithdrawn) for event in ready.events):
            self._finished_seen = False  # the mixture is not what it should be any more
        for job in ready.jobs:
            self._spawn(self._run_job(job))
        if self.coordinator.state.phase is Phase.FINISHED and not self._finished_seen:
            self._finished_seen = True
            try:
                await asyncio.to_thread(self._on_finished, self.coordinator, self.blobs)
            except DamagedBlob as error:
                log.error("the finished run can't be packaged: %s", error)
                self.blob_lost(error.digest)

    def _lost(self, lost: LostBlob, now: float) -> Ready:
        if not is_news(self.coordinator.state, self.blobs, lost):
            return Ready()
        reason = f"blob {lost.digest[:12]} is damaged or gone on the coordinator's disk"
        log.error("%s", reason)
        return self.coordinator.blob_damaged(lost.digest, reason, now)

    def _maybe_snapshot(self) -> None:
        """Right after a commit, when the state is that of the journal's last event."""
        due = self._journal.last_id >= self._snapshot_at + self._snapshot_events
        if due and (self._snapshot is None or self._snapshot.done()):
            self._snapshot_at = self._journal.last_id
            taken = take_snapshot(self.coordinator.state)
            self._snapshot = asyncio.create_task(self._keep_snapshot(self._snapshot_at, taken))

    async def _keep_snapshot(self, up_to: int, taken: bytes) -> None:
        try:
            await asyncio.to_thread(keep_snapshot, self._journal, up_to, taken)
        except DamagedJournal as error:  # what is in memory is right, the run can go on
            log.error("old events can't be read any more: %s", error)
        except WorldError as error:
            log.warning("the snapshot at event %d was not kept: %s", up_to, error)

    async def _run_job(self, job: jmsg.Job) -> None:
        try:
            self._tell(await self._worker.run(job))
        except DamagedBlob as error:
            log.error("%s can't be done: %s", job.job_id, error)
            self._tell(LostBlob(error.digest, by_job=True))
        except WorldError as error:
            self._stop_for(error)
        except Exception as error:  # a bug: the run would wait for this job for ever
            log.exception("%s failed", job.job_id)
            self._stop_for(OurError(f"{job.job_id} failed ({error!r}); this is a bug"))

    def _stop_for(self, trouble: SmalltalkError) -> None:
        self._trouble = trouble
        self._wake.set()

    def _tell(self, message: jmsg.Outcome | LostBlob) -> None:
        self._inbox.append(Inbound(message))
        self._wake.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
