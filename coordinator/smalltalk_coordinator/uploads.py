"""How many uploads at once: a few that fill our time, more that wait for their own lines.

Rules: an upload at full speed costs about a megabyte while it lasts, so `PLACES` go on at a
time and the others wait, unread. One whose parts are long in coming costs us little, and would
keep its place for hours (a large expert over a home line): it steps aside, where there is room
for `ASIDE`, and its place is free. So neither a slow line nor a dead one holds up the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb

PLACES = 4
ASIDE = 24
SLOW_S = 0.1  # a part of 256 KiB that takes longer: below 20 Mbit/s

Read = Callable[[], Awaitable[object]]  # gives a `pb.BlobPart`; anything else is the end


class Uploads:
    """Admission of uploads; one for all of a server, within one event loop."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._aside = 0

    @contextlib.asynccontextmanager
    async def admitted(self, read: Read) -> AsyncIterator[Place]:
        """Wait for a place; from there on `read` is called for one part after the other."""
        await self._places.acquire()
        place = Place(self, read)
        try:
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

    def __init__(self, uploads: Uploads, read: Read) -> None:
        self._uploads, self._read, self._aside = uploads, read, False

    async def read(self) -> pb.BlobPart | None:
        """The next part, or None after the last. Nothing of it is kept here."""
        self._look_later()
        try:
            part = await self._read()
        finally:
            self._late.cancel()
        return part if isinstance(part, pb.BlobPart) else None

    def leave(self) -> None:
        """The upload ends."""
        self._uploads.leave(self._aside)

    def _look_later(self) -> None:
        self._late = asyncio.get_running_loop().call_later(SLOW_S, self._step_aside)

    def _step_aside(self) -> None:
        self._aside = self._aside or self._uploads.step_aside()
        if not self._aside:
            self._look_later()
