"""What stands before every gRPC method: who calls, may it now, and is the message one.

Rules: a call is let in by the `gate` before its message is read; the message must come within
`MESSAGE_S` and parse, or the call is refused as any other. A refusal for speed may be kept
back first. A call that gave way to a newer one is told so. Refused calls cost their caller
more than others. Replies and errors of the services pass through as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from smalltalk_coordinator.calls import abort
from smalltalk_coordinator.gate import Gate, Overrun
from smalltalk_fed.errors import Malformed, SmalltalkError, WorldError
from smalltalk_fed.host.clock import Clock
from smalltalk_fed.wire import limits

Decode = Callable[[bytes], Any]

_FAULTS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class Guard(grpc.aio.ServerInterceptor):
    """One port's guard."""

    def __init__(
        self, gate: Gate, identify: Callable[[grpc.aio.ServicerContext], str], clock: Clock
    ) -> None:
        """`identify` says who calls; it may raise PeerError."""
        self._gate, self._identify, self._clock = gate, identify, clock
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._unknown = grpc.stream_unary_rpc_method_handler(self._no_method)
        self._gave_way: set[object] = set()
        self._held = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler, with the guard before it."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            inner = await continuation(handler_call_details)
            if inner is None:
                return self._unknown
            handler = self._handlers[method] = self._guarded(method.rpartition("/")[2], inner)
        return handler

    def _guarded(self, method: str, inner: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """To gRPC all requests are streams, so that it reads none before we want it."""
        decode = _strictly(inner.request_deserializer, method)

        async def stream(requests: object, context: grpc.aio.ServicerContext) -> None:
            async with _released(), self._admitted(method, context):
                if inner.request_streaming:  # it reads and writes by itself
                    await inner.stream_stream(requests, context)
                    return
                replies = inner.unary_stream(await _message(method, context), context)
                async with contextlib.aclosing(replies):
                    async for reply in replies:
                        await context.write(reply)

        async def unary(requests: object, context: grpc.aio.ServicerContext) -> Any:
            async with _released(), self._admitted(method, context):
                if inner.request_streaming:
                    return await inner.stream_unary(requests, context)
                return await inner.unary_unary(await _message(method, context), context)
            return None

        if inner.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, decode, inner.response_serializer)
        return grpc.stream_unary_rpc_method_handler(unary, decode, inner.response_serializer)

    async def _no_method(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        async with _released(), self._admitted("unknown", context):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")

    @contextlib.asynccontextmanager
    async def _admitted(
        self, method: str, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        who, let_in = "", False
        try:
            who = self._identify(context)
            turn_s = self._gate.enter(who, method, self._clock.now())
            let_in = True
            if turn_s > 0:
                await asyncio.sleep(turn_s)
            oldest = self._gate.begin(who, method, task, self._clock.now())
            if isinstance(oldest, asyncio.Task):
                self._gave_way.add(oldest)
                oldest.cancel()
            yield
        except Overrun as overrun:
            await self._keep_back(overrun.hold_s)
            await abort(context, overrun)
        except SmalltalkError as error:
            await abort(context, error)
        except asyncio.CancelledError:
            if task not in self._gave_way:
                raise  # the peer is gone
            task.uncancel()
            newer = f"a newer {method} of {who} took this call's place; ask again"
            await abort(context, WorldError(newer))
        finally:
            self._gave_way.discard(task)
            if let_in:
                self._gate.leave(who, method, task)
                if context.code() in _FAULTS:
                    self._gate.charge(who, limits.FAULT_CALLS, self._clock.now())

    async def _keep_back(self, hold_s: float) -> None:
        """Let a caller that does not wait by itself wait here; that costs us a timer."""
        if not hold_s or self._held >= limits.HELD_MAX:
            return
        self._held += 1
        try:
            await asyncio.sleep(hold_s)
        finally:
            self._held -= 1


@contextlib.asynccontextmanager
async def _released() -> AsyncIterator[None]:
    """Let nothing hold on to a call that was refused.

    gRPC keeps the error with the call, and the error's frames know the call: a ring that only
    the garbage collector would open. Until then the call counts as one of its connection's
    streams, and a node that was refused a few times would not be heard any more. gRPC raises
    the error again itself.
    """
    try:
        yield
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = aborted.__cause__ = None


async def _message(method: str, context: grpc.aio.ServicerContext) -> Any:
    """The one message of a call that is not an upload."""
    try:
        async with asyncio.timeout(limits.MESSAGE_S):
            message = await context.read()
    except TimeoutError:
        raise WorldError(
            f"the message of {method} did not come within {limits.MESSAGE_S:.0f} s"
        ) from None
    if message is grpc.aio.EOF:
        raise Malformed(f"{method} came without its message")
    return message


def _strictly(decode: Decode, method: str) -> Decode:
    """`decode`, whose only failure is ours."""

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            raise Malformed(f"the message of {method} can't be read; it is no protobuf of this "
                            "protocol's version") from None  # fmt: skip

    return decoded
