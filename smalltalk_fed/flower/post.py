"""Messages to Flower nodes and their answers, out of the blocking `Grid`, for asyncio.

Rules: one thread talks to the grid, so that nothing here asks it to be thread-safe; answers to
all that are out are looked for together, every `look_s`. That nobody answers is Flower's to
find out (53 s for a SuperNode, 62 s for an app that died): `NoAnswer` says which it was. An
answer that is late is knocked for: a SuperNode sends answers only when it has taken a message,
one round of them each time, and if an error of an earlier run's message took this round, the
answer lies there until the next message comes. How Flower's parts talk to each other, gRPC or
HTTP, is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from smalltalk_fed.errors import WorldError

T = TypeVar("T")
log = logging.getLogger("smalltalk.flower")

KNOCK = "query.knock"  # a message that says nothing, and whose answer nobody reads
LATE_S = 60.0  # beyond what an answer may take; a process may need half of it to start

# Flower's `ErrorCode`, which is not part of its public interface.
NODE_UNAVAILABLE = 5
TTL_S = 30 * 86400.0  # who is gone is found out by heartbeats, not by the age of a message


class NoAnswer(WorldError):
    """A message was not answered. `gone`: the node itself can't be reached."""

    def __init__(self, why: str, gone: bool) -> None:
        super().__init__(why)
        self.gone = gone


class NoLink(WorldError):
    """Flower's SuperLink can't be asked: the ServerApp can't go on, the run can."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"Flower's SuperLink can't be asked ({why}); start the app again with the same "
            "run-dir once it is there"
        )


class Post:
    """One Flower run's messages. Make it in a running loop, `start` it, `stop` it."""

    def __init__(self, grid: Grid, look_s: float) -> None:
        self._grid, self._look_s = grid, look_s
        self._thread = ThreadPoolExecutor(1, "flower-grid")
        self._out: dict[str, asyncio.Future[RecordDict] | None] = {}  # None: a knock
        self._looking: asyncio.Task[None] | None = None
        self._sent = asyncio.Event()

    def start(self) -> None:
        """Begin to look for answers."""
        self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Look no more; who waits is told."""
        if self._looking:
            self._looking.cancel()
        self._fail(NoLink("the ServerApp is stopping"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def nodes(self) -> list[int]:
        """Flower's ids of the nodes that are there. Raises NoLink."""
        return list(await self._call(lambda: list(self._grid.get_node_ids())))

    async def ask(
        self, node: int, kind: str, content: RecordDict, group: str = "", due_s: float = 0.0
    ) -> RecordDict:
        """Send one message and wait for its answer, however long it takes.

        `due_s`: how long the node may be at work on it; when that is over for a while, and again
        twice as long after, it is knocked for.

        Raises:
            NoAnswer: Flower says that none will come.
            NoLink: the message could not be sent, or the post is stopping.
        """
        future: asyncio.Future[RecordDict] = asyncio.get_running_loop().create_future()
        message_id = await self._send(
            Message(content, node, kind, ttl=TTL_S, group_id=group), future
        )
        late_s = due_s + LATE_S
        try:
            while True:
                await asyncio.wait({future}, timeout=late_s)
                if future.done():
                    return future.result()
                log.info("an answer from node %d is late: it is knocked for", node)
                await self._send(Message(RecordDict(), node, KNOCK, ttl=TTL_S), None)
                late_s *= 2
        finally:
            self._out.pop(message_id, None)

    async def _send(self, message: Message, answer: asyncio.Future[RecordDict] | None) -> str:
        """Hand a message in; returns its id. `answer` gets what comes back. Raises as `ask`."""
        if self._looking is None or self._looking.done():
            raise NoLink("nobody looks for answers any more")
        ids = await self._call(lambda: list(self._grid.push_messages([message])))
        if not ids or not ids[0]:
            node = message.metadata.dst_node_id
            raise NoAnswer(f"Flower did not take a message to node {node}", gone=True)
        self._out[ids[0]] = answer
        self._sent.set()
        return str(ids[0])

    async def _call(self, act: Callable[[], list[T]]) -> list[T]:
        """Ask the grid. Raises NoLink: Flower's own retries are over."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, act)
        except Exception as error:  # of httpx, grpc or whatever Flower talks with
            raise NoLink(str(error) or type(error).__name__) from error

    async def _look(self) -> None:
        try:
            while True:
                if not self._out:
                    self._sent.clear()
                    await self._sent.wait()
                ids = list(self._out)
                for reply in await self._call(lambda ids=ids: self._pull(ids)):  # type: ignore[misc]
                    self._settle(reply)
                await asyncio.sleep(self._look_s)
        except NoLink as error:
            self._fail(error)

    def _pull(self, ids: list[str]) -> list[Message]:
        return list(self._grid.pull_messages(ids))

    def _settle(self, reply: Message) -> None:
        future = self._out.pop(reply.metadata.reply_to_message_id, None)
        if future is None or future.done():
            return
        if reply.has_content():
            future.set_result(reply.content)
            return
        error = reply.error
        why = f"no answer from node {reply.metadata.src_node_id}: {error.reason}"
        future.set_exception(NoAnswer(why, gone=error.code == NODE_UNAVAILABLE))

    def _fail(self, error: WorldError) -> None:
        for future in self._out.values():
            if future is not None and not future.done():
                future.set_exception(error)
