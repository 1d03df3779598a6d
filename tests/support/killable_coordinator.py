"""A real host in a process of its own, over a pipe instead of gRPC; it dies where it is told.

`Zygote` keeps one small process that has imported everything (no torch, no gRPC) and forks a
coordinator from it in a millisecond. The coordinator's clock stands still until it is moved,
its jobs, snapshots and checks take turns in one thread, and `quiet` waits until nothing is
under way: a run that is driven one message at a time does the same every time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support import kill_points

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.errors import Refused
from smalltalk_fed.host import assemble, journal
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host

SNAPSHOT_EVENTS, BATCH_EVENTS = 5, 4  # so that there are snapshots and an archive


class Died(Exception):
    """The coordinator's process is gone."""


# --------------------------------------------------------------------- in the test's process


class Zygote:
    """Forks coordinators. Use as a context manager."""

    def __enter__(self) -> Zygote:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.killable_coordinator", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._socket = ours
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(30)

    def coordinator(
        self, folder: Path, now: float, kill_at: int = 0, only: str = ""
    ) -> Coordinator:
        """Start one on a run folder; it kills itself at the run's `kill_at`th point."""
        ours, theirs = socket.socketpair()
        with theirs:
            order = f"{kill_at}\0{only}\0{now!r}\0{folder}".encode()
            socket.send_fds(self._socket, [order], [theirs.fileno()])
        return Coordinator(Connection(ours.detach()))


@dataclass
class Coordinator:
    """The test's end of the pipe."""

    pipe: Connection
    answers: dict[int, Any] = field(default_factory=dict)
    _asked: int = 0

    def post(self, *request: object) -> int:
        """Send a request; its answer will be in `answers` under this number."""
        self._asked += 1
        try:
            self.pipe.send((self._asked, *request))
        except OSError:
            raise Died from None
        return self._asked

    def call(self, *request: object) -> Any:
        """Send a request and wait for its answer; an error that it answers with is raised."""
        number = self.post(*request)
        while number not in self.answers:
            try:
                answered, answer = self.pipe.recv()
            except (EOFError, OSError):
                raise Died from None
            self.answers[answered] = answer
        answer = self.answers.pop(number)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Hang up: the coordinator ends in good order, if it lives."""
        with contextlib.suppress(Died):
            self.call("stop")
        self.pipe.close()


# ------------------------------------------------------------------ in the zygote, and below


def zygote(control: socket.socket) -> None:
    """Fork a coordinator for every order that comes, until nobody orders any more."""
    gc.disable()  # nothing lives long, and what is looked at is copied
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not order:
            return
        if os.fork() == 0:
            control.close()
            kill_at, only, now, folder = order.decode().split("\0")
            serve(Path(folder), Connection(descriptors[0]), float(now), int(kill_at), only)
            os._exit(0)
        os.close(descriptors[0])
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def serve(folder: Path, pipe: Connection, now: float, kill_at: int, only: str) -> None:
    """Be a coordinator."""
    journal.BATCH_EVENTS = BATCH_EVENTS
    if kill_at:
        kill_points.install(kill_points.Points(kill_at, folder.with_name("points"), only))
    asyncio.run(Served(RunFolder.open(folder), pipe, ManualClock(now)).run())


class _OneThread(ThreadPoolExecutor):
    """Takes everything in turn, and counts it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.submitted = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.submitted += 1
        return super().submit(*arguments, **named)


@dataclass
class Served:
    """The coordinator's end of the pipe."""

    folder: RunFolder
    pipe: Connection
    clock: ManualClock

    async def run(self) -> None:
        """Answer until the test says stop or hangs up."""
        loop = asyncio.get_running_loop()
        self.thread, stopped = _OneThread(), asyncio.Event()
        loop.set_default_executor(self.thread)
        self.journal = journal.Journal(self.folder.journal)
        self.host = Host(
            self.folder.manifest,
            self.journal,
            self.folder.blobs,
            self.clock,
            on_finished=lambda coordinator, blobs: self._finished(coordinator, blobs),
            snapshot_events=SNAPSHOT_EVENTS,
            executor=self.thread,
        )
        tasks: set[asyncio.Task[None]] = set()

        def receive() -> None:
            try:
                number, kind, *arguments = self.pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            if kind == "stop":
                self.stop_number = number
                stopped.set()
                return
            task = loop.create_task(self._answer(number, getattr(self, f"do_{kind}"), arguments))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        self.host.start()
        loop.add_reader(self.pipe.fileno(), receive)
        await stopped.wait()
        loop.remove_reader(self.pipe.fileno())
        await self.host.stop()
        self.journal.close()
        self.pipe.send((self.stop_number, None))

    async def _answer(
        self, number: int, do: Callable[..., Awaitable[object]], arguments: list[Any]
    ) -> None:
        try:
            answer = await do(*arguments)
        except Exception as error:  # the test's to judge
            answer = error
        self.pipe.send((number, answer))

    def _finished(self, coordinator: Any, blobs: Any) -> None:
        assemble.assemble_mixture(self.folder, coordinator.state, blobs)

    # ------------------------------------------------------------------------ what it can do

    async def do_ask(self, message: msg.Request) -> msg.Answer:
        return await self.host.ask(message)

    async def do_blob_state(self, digest: str) -> tuple[int, bool]:
        return self.host.blobs.received(digest), self.host.blobs.has(digest)

    async def do_put(self, name: str, digest: str, size: int, offset: int, data: bytes) -> None:
        """A part of an upload, as the carrier hands it on."""
        blobs = self.host.blobs
        if blobs.has(digest):
            return
        upload = blobs.upload(digest, size, size_limit(self.host.manifest, name))
        try:
            upload.go_on_at(offset)
            await asyncio.to_thread(upload.write, data)
        finally:
            upload.pause()
        if upload.received == size:
            await asyncio.to_thread(upload.finish)

    async def do_get(self, digest: str) -> bytes:
        return self.host.blobs.get(digest)

    async def do_advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def do_quiet(self) -> float | None:
        """Wait until nothing is under way; when time alone will change something."""
        while True:
            before = self.thread.submitted, self.journal.last_id
            await asyncio.to_thread(lambda: None)  # after checks, jobs and snapshots before it
            for _ in range(2):  # what came before the first is committed and answered
                with contextlib.suppress(Refused):
                    await self.host.ask(msg.Revoke("nobody"))
            if before == (self.thread.submitted - 1, self.journal.last_id):
                return self.host.coordinator.deadline()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), socket.socket(fileno=int(sys.argv[1])) as end:
        zygote(end)
