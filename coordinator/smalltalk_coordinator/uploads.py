"""How many uploads at once: a few that fill our time, more that wait for their own lines.

Rules: an upload at full speed costs about a megabyte while it lasts, so `PLACES` go on at a
time, one of each node, and the others wait, unread. One whose parts are long in coming costs
us little, and would keep its place for hours (a large expert over a home line): it steps
aside, where there is room for `ASIDE`, and its place is free. So neither a slow line nor a
dead one holds up the others, nor does a node that uploads without end. An upload that brings
nothing for `STALL_S` ends; it can go on later.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

from smalltalk_fed.errors import WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.limits import UPLOAD_PLACES as PLACES
from smalltalk_fed.wire.limits import UPLOAD_STALL_S as STALL_S
from smalltalk_fed.wire.limits import UPLOADS_ASIDE as ASIDE

SLOW_S = 0.1  # a part of 256 KiB that takes longer: below 20 Mbit/s

Read = Callable[[], Awaitable[object]]  # gives a `pb.BlobPart`; anything else is the end


class Uploads:
    """Admission of uploads; one for all of a server, within one event loop."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._aside = 0
        # Of nodes that upload now; whoever holds or waits for one keeps it.
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def admitted(self, node_id: str, read: Read) -> AsyncIterator[Place]:
        """Wait for a place; from there on `read` is called for one part after the other."""
        turn = self._turns.setdefault(node_id, asyncio.Lock())
        await turn.acquire()
        place = Place(self, read, turn)
        try:
            await self._places.acquire()
            place.has = True
            yield place
        finally:
            place.leave()

    def step_aside(self) -> bool:
        """Give a place back and go on without one, if there is room."""
        if self._aside >= ASIDE:
            return False
        self._aside += 1
        self._places.release()
        return True

    def leave(self, aside: bool) -> None:
        """An upload ends."""
        if aside:
            self._aside -= 1
        else:
            self._places.release()


class Place:
    """What one upload holds."""

    def __init__(self, uploads: Uploads, read: Read, turn: asyncio.Lock) -> None:
        self._uploads, self._read, self._turn = uploads, read, turn
        self._aside = False
        self.has = False

    async def read(self) -> pb.BlobPart | None:
        """The next part, or None after the last. Nothing of it is kept here.

        Raises:
            WorldError: none comes.
        """
        self._look_later()
        try:
            async with asyncio.timeout(STALL_S):
                part = await self._read()
        except TimeoutError:
            raise WorldError(
                f"nothing of the upload came for {STALL_S:.0f} s; it can go on later"
            ) from None
        finally:
            self._late.cancel()
        return part if isinstance(part, pb.BlobPart) else None

    async def rest(self, wait_s: float) -> None:
        """Wait before the next part; aside, if there is room."""
        if wait_s > 0:
            self._give_up()
            await asyncio.sleep(wait_s)

    def leave(self) -> None:
        """The upload ends."""
        if self.has:
            self._uploads.leave(self._aside)
        if not self._aside:
            self._turn.release()

    def _look_later(self) -> None:
        self._late = asyncio.get_running_loop().call_later(SLOW_S, self._step_aside)

    def _step_aside(self) -> None:
        self._give_up()
        if not self._aside:
            self._look_later()

    def _give_up(self) -> None:
        if not self._aside and self._uploads.step_aside():
            self._aside = True
            self._turn.release()
