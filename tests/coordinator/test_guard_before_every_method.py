"""The guard over real sockets: no call is worked on, or remembered, before it is let in."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from smalltalk_coordinator.calls import served
from smalltalk_coordinator.gate import Gate
from smalltalk_coordinator.guard import Guard

from smalltalk_fed.errors import Refused
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import limits
from smalltalk_fed.wire.limits import WAIT_KEY, CallLimits

BURST = 50
STREAMS = 4


class Service(pb_grpc.RunServicer):
    """Answers, refuses, or holds, as its requests say."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.holding = asyncio.Event()
        self.release = asyncio.Event()

    @served
    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:  # noqa: N802
        self.heard.append(request)
        if request.reason == "refuse":
            raise Refused("not like this")
        if request.reason == "hold":
            self.holding.set()
            await self.release.wait()
        return pb.LeaveReply(released=[request.reason])

    async def GetBlob(  # noqa: N802
        self, request: pb.GetBlobRequest, context: Any
    ) -> AsyncIterator[pb.BlobPart]:
        for _ in range(3):
            yield pb.BlobPart(data=request.digest)

    @served
    async def PutBlob(self, requests: Any, context: Any) -> pb.BlobStateReply:  # noqa: N802
        received = 0
        while (part := await context.read()) is not grpc.aio.EOF:
            received += len(part.data)
        return pb.BlobStateReply(received=received, complete=True)


@dataclass
class Stage:
    """A server, its gate, and one connection to it."""

    service: Service
    gate: Gate
    clock: ManualClock
    channel: grpc.aio.Channel
    dropped: list[str] = field(default_factory=list)

    @property
    def run(self) -> pb_grpc.RunStub:
        return pb_grpc.RunStub(self.channel)

    async def raw(self, data: bytes, method: str = "Leave") -> bytes:
        """Call with any bytes for a message."""
        answer: bytes = await self.channel.unary_unary(f"/smalltalk.v1.Run/{method}")(data)
        return answer


def staged(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run `scene` with a stage."""

    @asynccontextmanager
    async def stage() -> AsyncIterator[Stage]:
        clock, service = ManualClock(), Service()
        gate = Gate(CallLimits(float(BURST), in_flight={"Leave": 2}))
        server = grpc.aio.server(
            interceptors=[Guard(gate, lambda context: "n-1", clock)],
            options=[("grpc.max_concurrent_streams", STREAMS)],
        )
        pb_grpc.add_RunServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Stage(service, gate, clock, channel)
        await server.stop(0)

    async def play() -> None:
        async with stage() as made:
            await scene(made)

    asyncio.run(asyncio.wait_for(play(), 30))


async def refusal(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def test_every_kind_of_call_passes_as_it_is() -> None:
    async def scene(stage: Stage) -> None:
        reply = await stage.run.Leave(pb.LeaveRequest(reason="bye"))
        assert list(reply.released) == ["bye"]
        parts = [part async for part in stage.run.GetBlob(pb.GetBlobRequest(digest=b"d"))]
        assert [part.data for part in parts] == [b"d"] * 3
        parts = [pb.BlobPart(data=b"ab"), pb.BlobPart(data=b"c")]
        assert (await stage.run.PutBlob(iter(parts))).received == 3
        error = await refusal(stage.run.Leave(pb.LeaveRequest(reason="refuse")))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error.details() == "not like this"

    staged(scene)


@pytest.mark.parametrize("method", ["Leave", "GetBlob", "PutBlob"])
def test_bytes_that_are_no_message_are_refused_without_a_traceback(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        if method == "GetBlob":
            call = stage.channel.unary_stream("/smalltalk.v1.Run/GetBlob")(b"\xff" * 9)
            error = await refusal(call.read())
        else:
            error = await refusal(stage.raw(b"\xff" * 9, method))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"the message of {method} can't be read" in str(error.details())
        assert stage.service.heard == []

    staged(scene)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_call_without_its_message_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_S", 0.05)

    async def scene(stage: Stage) -> None:
        async def nothing(never: bool) -> AsyncIterator[bytes]:
            if never:
                await asyncio.Event().wait()
            return
            yield b""

        leave = stage.channel.stream_unary("/smalltalk.v1.Run/Leave")
        error = await refusal(leave(nothing(False)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "came without its message" in str(error.details())
        error = await refusal(leave(nothing(True)))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "did not come within" in str(error.details())

    staged(scene)


def test_refused_calls_and_unknown_methods_cost_more_and_end_in_a_wait() -> None:
    async def scene(stage: Stage) -> None:
        errors = []
        most = int(BURST / (1 + limits.FAULT_CALLS)) + 1
        for number in range(most + 1):
            call = stage.raw(b"", "NoSuch") if number % 2 else stage.raw(b"\xff")
            errors.append(await refusal(call))
        codes = [error.code().name for error in errors]
        assert codes[:most] == (["INVALID_ARGUMENT", "UNIMPLEMENTED"] * BURST)[:most]
        told = errors[most]
        assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "n-1 asked more than 20 times a second" in str(told.details())
        (wait_ms,) = [value for key, value in told.trailing_metadata() if key == WAIT_KEY]
        assert int(wait_ms) >= limits.WAIT_S * 1000

    staged(scene)


def test_refusals_are_kept_back_before_their_caller_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HOLD_S", 0.05)

    async def scene(stage: Stage) -> None:
        took = []
        for _ in range(BURST + limits.DROP_AFTER):
            began = asyncio.get_running_loop().time()
            try:
                await stage.run.Leave(pb.LeaveRequest())
            except grpc.aio.AioRpcError as error:
                took.append(asyncio.get_running_loop().time() - began)
                last = error
        assert len(took) == limits.DROP_AFTER
        assert all(seconds >= limits.HOLD_S for seconds in took[limits.TOLD_MAX :])
        assert "went on after 40 refusals" in str(last.details())
        error = await refusal(stage.run.Leave(pb.LeaveRequest()))
        assert "n-1 is not heard for 300 s more" in str(error.details())
        stage.clock.advance(limits.DROP_S)
        await stage.run.Leave(pb.LeaveRequest())

    staged(scene)


def test_a_call_that_gave_way_is_told_so_and_the_newer_ones_go_on() -> None:
    async def scene(stage: Stage) -> None:
        calls = []
        for _ in range(3):
            calls.append(asyncio.ensure_future(stage.run.Leave(pb.LeaveRequest(reason="hold"))))
            await stage.service.holding.wait()
            stage.service.holding.clear()
        error = await refusal(calls[0])
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "a newer Leave of n-1 took this call's place" in str(error.details())
        stage.service.release.set()
        for call in calls[1:]:
            assert list((await call).released) == ["hold"]

    staged(scene)


def test_refused_calls_are_gone_at_once_and_take_no_streams() -> None:
    """Without the garbage collector; a call that is kept counts as a stream of its connection."""

    async def scene(stage: Stage) -> None:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20 * STREAMS):
                stage.clock.advance(10.0)
                for call in (
                    stage.run.Leave(pb.LeaveRequest(reason="refuse")),
                    stage.raw(b"\xff"),
                    stage.raw(b"", "NoSuch"),
                ):
                    error = await refusal(call)
                    assert "RST_STREAM" not in str(error.details())
        finally:
            gc.enable()
        assert (await stage.run.PutBlob(iter([pb.BlobPart(data=b"ab")]))).received == 2

    staged(scene)


def test_a_peer_that_hangs_up_leaves_nothing_behind() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(5):
            call = asyncio.ensure_future(stage.run.Leave(pb.LeaveRequest(reason="hold")))
            await stage.service.holding.wait()
            stage.service.holding.clear()
            call.cancel()
        kept = [asyncio.ensure_future(stage.run.Leave(pb.LeaveRequest(reason="hold")))]
        await stage.service.holding.wait()
        stage.service.release.set()
        assert list((await kept[0]).released) == ["hold"]

    staged(scene)
