"""What `Serve` does with one node's stream: its offer, prompts down, answers up, until it ends.

Rules: the certificate and the journal are asked again with every answer, before every prompt,
and now and then while nothing is said, so that a node that was shut out is gone in seconds.
Both directions go on side by side; the first that ends ends the call. Who gets which prompt is
`relay`'s part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from smalltalk_coordinator.relay import Line, Relay
from smalltalk_fed.errors import Malformed, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert_serving, limits
from smalltalk_fed.wire.convert_serving import Answer, Offer

KIND = "serve"

Who = Callable[[], str]  # the caller's id; raises PeerError when it may not call any more


class ServingService:
    """Conducts the streams of nodes that serve."""

    def __init__(self, relay: Relay, ledger: Ledger) -> None:
        self._relay, self._ledger = relay, ledger

    async def conduct(self, context: grpc.aio.ServicerContext, who: Who) -> None:
        """One stream from its offer to its end.

        Raises:
            PeerError: what the node says is not acceptable, or it may not call any more.
        """
        node_id = who()
        try:
            async with asyncio.timeout(limits.MESSAGE_S):
                offer = await self._read(node_id, context)
        except TimeoutError:
            late = f"no offer came within {limits.MESSAGE_S:.0f} s"
            raise WorldError(late) from None
        if not isinstance(offer, Offer):
            raise Malformed("the first message of a node that serves must be its offer")
        line = self._relay.open(node_id, offer)
        try:
            await self._write(node_id, context, convert_serving.taken_to_proto("prompts follow"))
            await _first(
                self._send(line, context, who),
                self._receive(line, context, who),
                line.closed.wait(),
            )
        finally:
            self._relay.close(line)

    async def _send(self, line: Line, context: grpc.aio.ServicerContext, who: Who) -> None:
        while True:
            try:
                async with asyncio.timeout(limits.SERVING_LOOK_S):
                    asked = await line.next()
            except TimeoutError:
                who()
                continue
            who()
            await self._write(line.node_id, context, convert_serving.asked_down(asked))

    async def _receive(self, line: Line, context: grpc.aio.ServicerContext, who: Who) -> None:
        while (said := await self._read(line.node_id, context)) is not None:
            who()
            if isinstance(said, Offer):
                raise Malformed("a second offer on one stream; connect anew to change it")
            line.answered(said)

    async def _read(self, node_id: str, context: grpc.aio.ServicerContext) -> Offer | Answer | None:
        """What the node says next; None when it has said all."""
        message: Any = await context.read()
        if message is grpc.aio.EOF:
            return None
        self._ledger.message(node_id, KIND, "up", message.ByteSize())
        return convert_serving.serve_up_from_proto(message)

    async def _write(
        self, node_id: str, context: grpc.aio.ServicerContext, message: pb.ServeDown
    ) -> None:
        self._ledger.message(node_id, KIND, "down", message.ByteSize())
        await context.write(message)


async def _first(*works: Any) -> None:
    """Go on until the first of these ends; its error is raised, the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except grpc.aio.UsageError:
        raise WorldError("the node hung up") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
