"""Admission of uploads: few at full speed, and nobody waits for a line that is slow or dead."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

import pytest
from smalltalk_coordinator import uploads
from smalltalk_coordinator.uploads import Uploads

from smalltalk_fed.errors import WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb

_numbers = itertools.count()


class Sender:
    """An upload whose parts come when the test says so."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.parts: asyncio.Queue[pb.BlobPart | None] = asyncio.Queue()
        self.admitted = asyncio.Event()
        self.received = 0

    async def upload(self, at: Uploads) -> None:
        async with at.admitted(self.node_id, self.parts.get) as place:
            self.admitted.set()
            while await place.read() is not None:
                self.received += 1


class CountingUploads(Uploads):
    """Counts how often there was no room aside."""

    refused_room = 0

    def step_aside(self) -> bool:
        room = super().step_aside()
        self.refused_room += not room
        return room


@pytest.fixture
def forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part is ever too late."""
    monkeypatch.setattr(uploads, "SLOW_S", 3600.0)


def run(scene: object) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))  # type: ignore[arg-type]


async def begin(stack: AsyncExitStack, at: Uploads, count: int, who: str = "") -> list[Sender]:
    """Uploads of `count` nodes, or of one that is called `who`."""
    senders = [Sender(who or f"n-{next(_numbers)}") for _ in range(count)]
    for sender in senders:
        stack.callback(asyncio.create_task(sender.upload(at)).cancel)
    return senders


def test_as_many_as_there_are_places_go_on_at_a_time(forever: None) -> None:
    async def scene() -> None:
        async with AsyncExitStack() as stack:
            senders = await begin(stack, Uploads(), uploads.PLACES + 1)
            for sender in senders[:-1]:
                await sender.admitted.wait()
            await asyncio.sleep(0)
            assert not senders[-1].admitted.is_set()
            senders[0].parts.put_nowait(pb.BlobPart(data=b"all"))
            senders[0].parts.put_nowait(None)
            await senders[-1].admitted.wait()
            assert senders[0].received == 1

    run(scene())


def test_those_that_wait_for_their_lines_keep_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "SLOW_S", 0.01)

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            at = Uploads()
            slow = await begin(stack, at, uploads.ASIDE)
            for sender in slow:
                await sender.admitted.wait()
            (quick,) = await begin(stack, at, 1)
            await quick.admitted.wait()
            slow[0].parts.put_nowait(pb.BlobPart(data=b"late"))
            slow[0].parts.put_nowait(None)
            while not slow[0].received:
                await asyncio.sleep(0)

    run(scene())


def test_there_is_an_end_of_stepping_aside_and_room_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "SLOW_S", 0.01)

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            most = uploads.ASIDE + uploads.PLACES
            at = CountingUploads()
            senders = await begin(stack, at, most + 1)
            for sender in senders[:-1]:
                await sender.admitted.wait()
            # Those that keep their places have looked for room aside, and found none.
            while at.refused_room < uploads.PLACES:
                await asyncio.sleep(0)
            assert not senders[-1].admitted.is_set()
            senders[0].parts.put_nowait(None)
            await senders[-1].admitted.wait()

    run(scene())


def test_a_node_has_one_place_and_takes_none_from_others(forever: None) -> None:
    async def scene() -> None:
        async with AsyncExitStack() as stack:
            at = Uploads()
            greedy = await begin(stack, at, uploads.PLACES, "n-greedy")
            await greedy[0].admitted.wait()
            others = await begin(stack, at, uploads.PLACES - 1)
            for sender in others:
                await sender.admitted.wait()
            assert [sender.admitted.is_set() for sender in greedy] == [True, False, False, False]
            greedy[0].parts.put_nowait(None)
            await greedy[1].admitted.wait()

    run(scene())


def test_an_upload_that_brings_nothing_ends_and_its_place_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "STALL_S", 0.02)
    monkeypatch.setattr(uploads, "ASIDE", 0)

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            at, dead = Uploads(), Sender("n-dead")
            with pytest.raises(WorldError, match="can go on later"):
                await dead.upload(at)
            senders = await begin(stack, at, uploads.PLACES)
            for sender in senders:
                await sender.admitted.wait()

    run(scene())
