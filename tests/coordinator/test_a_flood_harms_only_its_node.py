"""One node floods a real coordinator; fifty honest ones are answered, each time."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.deployment import wait_for
from support.real_coordinator import Enrolled, RealCoordinator, real_coordinator

from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import limits
from smalltalk_fed.wire.convert_transfer import Upload, upload_to_proto
from smalltalk_fed.wire.limits import WAIT_KEY, RunLimits

HONEST = 50
FLOODERS = 7
STREAMS = 12

Call = Callable[[pb_grpc.RunStub, grpc.aio.Channel], Awaitable[object]]


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCoordinator]:
    path = tmp_path_factory.mktemp("flood")
    with real_coordinator(path, HONEST + FLOODERS, run={"experts": 4}) as made:
        yield made


@pytest.fixture(scope="module")
def flooders(coordinator: RealCoordinator) -> Iterator[Enrolled]:
    return iter(coordinator.nodes[HONEST:])


@pytest.fixture
def flooder(flooders: Iterator[Enrolled]) -> Enrolled:
    """One that has done nothing so far."""
    return next(flooders)


async def honest(coordinator: RealCoordinator, node: Enrolled, stop: asyncio.Event) -> int:
    """Join and say again and again where it is; any refusal is an error. Returns the answers."""
    answers = 0
    async with coordinator.aio_channel(node) as channel:
        run = pb_grpc.RunStub(channel)
        await run.Join(node.join(coordinator.folder.manifest), timeout=60)
        while not stop.is_set():
            await run.Exchange(pb.ExchangeRequest(incarnation=1, wants_work=False), timeout=60)
            answers += 1
            await asyncio.wait([asyncio.ensure_future(stop.wait())], timeout=0.5)
    return answers


async def flood(
    coordinator: RealCoordinator, node: Enrolled, call: Call
) -> list[tuple[float, grpc.aio.AioRpcError]]:
    """Call as fast as possible until nothing is heard any more; the refusals and their time."""
    refusals: list[tuple[float, grpc.aio.AioRpcError]] = []
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    async def stream(run: pb_grpc.RunStub, channel: grpc.aio.Channel) -> None:
        while not done.is_set():
            began = loop.time()
            try:
                await call(run, channel)
            except grpc.aio.AioRpcError as error:
                refusals.append((loop.time() - began, error))
                if "is not heard" in str(error.details()):
                    done.set()

    async with coordinator.aio_channel(node) as channel:
        run = pb_grpc.RunStub(channel)
        await run.Join(node.join(coordinator.folder.manifest), timeout=60)
        await asyncio.gather(*(stream(run, channel) for _ in range(STREAMS)))
    return refusals


def exchange(run: pb_grpc.RunStub, channel: grpc.aio.Channel) -> Awaitable[object]:
    return run.Exchange(pb.ExchangeRequest(incarnation=1, wants_work=False), timeout=60)


def garbage(run: pb_grpc.RunStub, channel: grpc.aio.Channel) -> Awaitable[object]:
    return channel.unary_unary("/smalltalk.v1.Run/Exchange")(os.urandom(200) + b"\xff", timeout=60)


def blob_state(run: pb_grpc.RunStub, channel: grpc.aio.Channel) -> Awaitable[object]:
    return run.BlobState(pb.BlobStateRequest(digest=os.urandom(32)), timeout=60)


@pytest.mark.parametrize("call", [exchange, garbage, blob_state])
def test_a_flood_is_told_slowed_and_dropped_and_no_honest_node_is_refused(
    coordinator: RealCoordinator, flooder: Enrolled, call: Call
) -> None:
    async def scene() -> tuple[list[int], list[tuple[float, grpc.aio.AioRpcError]]]:
        stop = asyncio.Event()
        others = [
            asyncio.create_task(honest(coordinator, node, stop))
            for node in coordinator.nodes[:HONEST]
        ]
        refusals = await flood(coordinator, flooder, call)
        stop.set()
        return await asyncio.gather(*others), refusals

    answers, refusals = asyncio.run(asyncio.wait_for(scene(), 120))
    assert min(answers) > 0
    slow = [
        (seconds, error)
        for seconds, error in refusals
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    ]
    told, dropped = slow[0][1], slow[-1][1]
    assert f"{flooder.node_id} asked more than 20 times a second" in str(told.details())
    assert int(dict(iter(told.trailing_metadata()))[WAIT_KEY]) >= 1000 * limits.WAIT_S
    assert any(seconds >= limits.HOLD_S for seconds, _ in slow)
    assert f"{flooder.node_id} is not heard" in str(dropped.details())
    assert {error.code().name for _, error in refusals} <= {
        "RESOURCE_EXHAUSTED",
        "INVALID_ARGUMENT",
        "UNAVAILABLE",  # it gave way to a newer one
    }
    refused = {row["caller"]: row for row in coordinator.status()["refused"]}
    assert refused[flooder.node_id]["dropped_for_s"] > 0
    assert not any(node.node_id in refused for node in coordinator.nodes[:HONEST])
    assert coordinator.log.read_text().count(f"dropped {flooder.node_id}") == 1


def test_a_node_that_joins_over_and_over_is_dropped(
    coordinator: RealCoordinator, flooder: Enrolled
) -> None:
    incarnations = itertools.count(2)

    def join(run: pb_grpc.RunStub, channel: grpc.aio.Channel) -> Awaitable[object]:
        request = flooder.join(coordinator.folder.manifest, next(incarnations))
        return run.Join(request, timeout=60)

    asyncio.run(asyncio.wait_for(flood(coordinator, flooder, join), 120))
    burst = RunLimits.of(coordinator.folder.manifest).nodes.calls_burst
    joined = coordinator.log.read_text().count(f"node {flooder.node_id} joined")
    assert joined <= burst / limits.COSTLY_CALL + 20


def routing(coordinator: RealCoordinator, node: Enrolled, run: pb_grpc.RunStub) -> None:
    """Join, and wait for the first round, so that its outputs may be uploaded."""
    run.Join(node.join(coordinator.folder.manifest))
    wait_for(lambda: coordinator.status()["round"] == 1, "the first round")


def parts(ref: BlobRef, data: bytes) -> Iterator[pb.BlobPart]:
    yield upload_to_proto(Upload(ref, "router_round/0/1", 0), data)


def test_junk_that_is_uploaded_does_not_pile_up(
    coordinator: RealCoordinator, flooder: Enrolled
) -> None:
    with coordinator.channel(flooder) as channel:
        run = pb_grpc.RunStub(channel)
        routing(coordinator, flooder, run)
        for _ in range(3 * limits.LOOSE_BLOBS_MAX):
            data = os.urandom(100_000)
            ref = BlobRef("parameters", hashlib.sha256(data).hexdigest(), len(data))
            assert run.PutBlob(parts(ref, data)).complete
        begun = BlobRef("parameters", os.urandom(32).hex(), 100_000)
        assert not run.PutBlob(parts(begun, data[:10])).complete
        most = size_limit(coordinator.folder.manifest, "parameters")
        with pytest.raises(grpc.RpcError) as caught:
            run.PutBlob(parts(BlobRef("parameters", "0" * 64, most + 1), b""))
        assert f"the run allows {most}" in str(caught.value.details())  # type: ignore[attr-defined]
    blobs = coordinator.folder.blobs
    assert len(list((blobs / "uploads").glob("*.from"))) <= limits.LOOSE_BLOBS_MAX
    whole = [path for path in blobs.glob("??/*") if path.stat().st_size == 100_000]
    assert len(whole) <= limits.LOOSE_BLOBS_MAX


def test_uploads_that_stand_still_give_way_to_newer_ones(
    coordinator: RealCoordinator, flooder: Enrolled
) -> None:
    release = threading.Event()

    def stalled() -> Iterator[pb.BlobPart]:
        ref = BlobRef("parameters", os.urandom(32).hex(), 100_000)
        yield from parts(ref, b"a beginning")
        release.wait(60)

    with coordinator.channel(flooder) as channel:
        run = pb_grpc.RunStub(channel)
        routing(coordinator, flooder, run)
        calls: list[Any] = []
        begun = coordinator.folder.blobs / "uploads"
        before = len(list(begun.glob("*.part")))
        most = RunLimits.of(coordinator.folder.manifest).nodes.in_flight["PutBlob"]
        for number in range(most + 1):
            calls.append(run.PutBlob.future(stalled()))
            wait_for(lambda n=number: len(list(begun.glob("*.part"))) > before + n, "the upload")
        assert calls[0].code() is grpc.StatusCode.UNAVAILABLE
        assert "a newer PutBlob" in calls[0].details()
        assert not any(call.done() for call in calls[1:])
        release.set()
        for call in calls[1:]:
            call.cancel()


def test_the_run_is_still_served_and_its_folder_is_small(coordinator: RealCoordinator) -> None:
    node = coordinator.nodes[0]
    with coordinator.channel(node) as channel:
        run = pb_grpc.RunStub(channel)
        run.Join(node.join(coordinator.folder.manifest), timeout=20)
        reply = run.Exchange(pb.ExchangeRequest(incarnation=1, wants_work=False), timeout=20)
    assert reply.heartbeat_s > 0
    assert Path(coordinator.folder.journal).stat().st_size < 5_000_000
