"""The loop around the core: take messages in, commit, then answer; run jobs; let time pass.

Rules: one event loop drives one coordinator. Messages that are there together are handled
together and committed in one transaction (group commit); no answer leaves before its events
are durable. A commit that fails, or a bug in the core, stops the host: `wait_stopped`
raises. Jobs run in one worker process. It knows neither gRPC nor Flower.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator, Ready
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.errors import PeerError, SmalltalkError, WorldError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.checks import check_result
from smalltalk_fed.host.clock import Clock
from smalltalk_fed.host.jobs import end_with_parent, run_job_counted
from smalltalk_fed.host.journal import Journal

JOB_TRIES = 3


@dataclass(frozen=True)
class _Inbound:
    message: msg.Request | msg.JobFinished | msg.JobFailed
    conversation: int


class Host:
    """One run's coordinator, alive. Create it inside a running event loop."""

    def __init__(
        self,
        manifest: RunManifest,
        journal: Journal,
        blob_folder: Path,
        clock: Clock,
        *,
        on_decision: Callable[[msg.Decision], None] = lambda decision: None,
        on_finished: Callable[[Coordinator, BlobStore], None] = lambda coordinator, blobs: None,
    ) -> None:
        self.manifest = manifest
        self.clock = clock
        self.blobs = BlobStore(blob_folder)
        self.coordinator = Coordinator.replay(manifest, journal.events(), clock.now())
        self._journal = journal
        self._blob_folder = blob_folder
        self._on_decision = on_decision
        self._on_finished = on_finished
        self._inbox: deque[_Inbound] = deque()
        self._wake = asyncio.Event()
        self._answers: dict[int, asyncio.Future[msg.Answer]] = {}
        self._conversations = 0
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool: ProcessPoolExecutor | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._finished_seen = False
        self.worker_cpu_s = 0.0  # of the present worker process, as of its last job

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
        if isinstance(message, msg.Exchange):
            for result in (message.finished, message.collected):
                if result is not None:
                    await asyncio.to_thread(check_result, self.manifest, result, self.blobs)
        self._conversations += 1
        conversation = self._conversations
        future: asyncio.Future[msg.Answer] = asyncio.get_running_loop().create_future()
        self._answers[conversation] = future
        self._inbox.append(_Inbound(message, conversation))
        self._wake.set()
        try:
            return await future
        finally:
            if self._answers.pop(conversation, None) is not None:
                self.coordinator.forget(conversation)  # the peer is gone

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
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

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
        batch, self._inbox = self._inbox, deque()
        ready = Ready()
        for inbound in batch:
            now = self.clock.now()
            try:
                if isinstance(inbound.message, msg.JobFinished | msg.JobFailed):
                    part = self.coordinator.job_done(inbound.message, now)
                else:
                    part = self.coordinator.handle(inbound.message, inbound.conversation, now)
            except PeerError as error:
                future = self._answers.get(inbound.conversation)
                if future and not future.done():
                    future.set_exception(error)
                continue
            ready.add(part)
        deadline = self.coordinator.deadline()
        if deadline is not None and deadline <= self.clock.now():
            ready.add(self.coordinator.tick(self.clock.now()))
        await self._settle(ready)

    async def _settle(self, ready: Ready) -> None:
        """Commit, then answer, then start what was asked for."""
        if ready.events:
            await asyncio.to_thread(self._journal.append, ready.events)
        for reply in ready.replies:
            future = self._answers.get(reply.conversation)
            if future and not future.done():
                future.set_result(reply.answer)
        for decision in ready.decisions:
            self._on_decision(decision)
        for digest in ready.released:
            self.blobs.drop(digest)
        for job in ready.jobs:
            self._spawn(self._run_job(job))
        if self.coordinator.state.phase is Phase.FINISHED and not self._finished_seen:
            self._finished_seen = True
            await asyncio.to_thread(self._on_finished, self.coordinator, self.blobs)

    async def _run_job(self, job: msg.Job) -> None:
        outcome: msg.JobFinished | msg.JobFailed
        for attempt in range(1, JOB_TRIES + 1):
            try:
                outcome, self.worker_cpu_s = await asyncio.get_running_loop().run_in_executor(
                    self._workers(), run_job_counted, self.manifest, job, self._blob_folder
                )
                break
            except BrokenProcessPool:  # out of memory, most likely
                self._pool = None
                outcome = msg.JobFailed(
                    job.job_id, f"the worker process died {attempt} times; it may need more memory"
                )
            except (SmalltalkError, ValueError, OSError, MemoryError) as error:
                outcome = msg.JobFailed(job.job_id, str(error) or type(error).__name__)
                break
        self._inbox.append(_Inbound(outcome, 0))
        self._wake.set()

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: gRPC's threads don't survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                max_workers=1, mp_context=context, initializer=end_with_parent
            )
        return self._pool

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
