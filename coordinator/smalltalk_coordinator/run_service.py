"""The nodes' port: Join, Exchange, blobs, Leave, Withdraw, Serve.

Thin: identity, conversion, limits, bytes. Decisions are the core's (`Host.ask`), how many
uploads go on at a time is `uploads`' part, what goes over the line of a node that serves its
experts `serving_service`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from google.protobuf.message import Message

from smalltalk_coordinator.calls import abort, caller, counted, served
from smalltalk_coordinator.gate import Direction, Gate
from smalltalk_coordinator.serving_service import ServingService
from smalltalk_coordinator.uploads import Uploads
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import known
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.silos import may_read
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.errors import Malformed, Refused, SmalltalkError
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.blobs import Upload
from smalltalk_fed.host.handed_in import check_signature, check_wanted
from smalltalk_fed.host.host import Host
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger, kind_of
from smalltalk_fed.wire import convert, convert_serving, convert_transfer, limits
from smalltalk_fed.wire.signing import SigningKey, sign_manifest, sign_unit
from smalltalk_fed.wire.values import cut, digest_from_proto


class RunService(pb_grpc.RunServicer):
    """Serves the nodes of one run."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        signing_key: SigningKey,
        gate: Gate,
        addresses: Callable[[], Addresses],
        serving: ServingService,
    ) -> None:
        """`gate`: the budgets of this port's callers; its guard has let every call in.

        `addresses`: those that nodes are told when they join.
        """
        self._host, self._gate = host, gate
        self._ledger = ledger
        manifest = host.manifest.to_bytes()
        self._manifest = manifest
        self._manifest_signature = sign_manifest(signing_key, manifest)
        self._signing_key, self._addresses = signing_key, addresses
        self._uploads, self._serving = Uploads(), serving

    @served
    async def Join(  # noqa: N802
        self, request: pb.JoinRequest, context: grpc.aio.ServicerContext
    ) -> pb.JoinReply:
        """A node's process presents itself and gets the signed manifest."""
        node_id = self._known(context)
        joined = await self._host.ask(convert.join_from_proto(node_id, request))
        assert isinstance(joined, msg.Joined)
        key, where = self._signing_key.public_bytes, self._addresses()
        signed = (self._manifest, self._manifest_signature, key)
        welcome = convert.Welcome(joined, *signed, where.runs, where.enrolments)
        reply = convert.welcome_to_proto(welcome)
        self._count(node_id, "join", request, reply)
        return reply

    @served
    async def Exchange(  # noqa: N802
        self, request: pb.ExchangeRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExchangeReply:
        """What the node did and does; the next order. Held while there is nothing to do."""
        node_id = self._known(context)
        exchange = convert.exchange_from_proto(node_id, request)
        for result in (exchange.finished, exchange.collected):
            if result is not None:
                self._gate.charge(node_id, limits.COSTLY_CALL, self._host.clock.now())
                check_signature(self._host.coordinator.state, exchange, result)
        counts = self._counts(exchange)
        order = await self._host.ask(exchange)
        assert isinstance(order, msg.Order)
        if self._counts(exchange) > counts:
            self._gate.progress(node_id, self._host.clock.now())
        reply = convert.order_to_proto(order)
        if order.unit is not None:
            who = (self._host.manifest.run_id, node_id, exchange.incarnation)
            reply.unit_signature = sign_unit(self._signing_key, *who, order.unit)
        self._count(node_id, "exchange", request, reply)
        return reply

    @served
    async def Leave(  # noqa: N802
        self, request: pb.LeaveRequest, context: grpc.aio.ServicerContext
    ) -> pb.LeaveReply:
        """The node goes; its leases are free at once."""
        node_id = self._known(context)
        left = await self._host.ask(convert.leave_from_proto(node_id, request))
        assert isinstance(left, msg.Left)
        reply = convert.left_to_proto(left)
        self._count(node_id, "leave", request, reply)
        return reply

    @served
    async def Withdraw(  # noqa: N802
        self, request: pb.WithdrawRequest, context: grpc.aio.ServicerContext
    ) -> pb.WithdrawReply:
        """The owner takes its experts out of the mixture."""
        node_id = self._known(context)
        done = await self._host.ask(convert_serving.withdraw_from_proto(node_id, request))
        assert isinstance(done, msg.Done)
        reply = pb.WithdrawReply(reason=cut(done.reason))
        self._count(node_id, "withdraw", request, reply)
        return reply

    @served
    async def Serve(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ServeUp], context: grpc.aio.ServicerContext
    ) -> None:
        """The node's experts answer prompts, as long as it stays."""
        await self._serving.conduct(context, lambda: self._known(context))

    @served
    async def BlobState(  # noqa: N802
        self, request: pb.BlobStateRequest, context: grpc.aio.ServicerContext
    ) -> pb.BlobStateReply:
        """How much of a blob is there."""
        node_id = self._known(context)
        digest = digest_from_proto(request.digest)
        reply = pb.BlobStateReply(
            received=self._host.blobs.received(digest), complete=self._host.blobs.has(digest)
        )
        self._count(node_id, "blob_state", request, reply)
        return reply

    @served
    async def PutBlob(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.BlobPart], context: grpc.aio.ServicerContext
    ) -> pb.BlobStateReply:
        """Take a blob in; an interrupted upload goes on at its offset."""
        node_id = self._known(context)
        async with self._uploads.admitted(node_id, context.read) as place:
            part = await place.read()
            if part is None:
                raise Malformed("an upload without a first part")
            announced = convert_transfer.upload_from_proto(part)
            name, size = announced.ref.name, announced.ref.size
            check_wanted(self._host.coordinator.state, announced.unit_id, name)
            kind = kind_of(name, announced.unit_id)
            blobs = self._host.blobs
            if blobs.has(announced.ref.digest):
                self._ledger.message(node_id, kind, "up", part.ByteSize())
                return pb.BlobStateReply(received=size, complete=True)
            digest = announced.ref.digest
            make_room = self._host.loose.admit(node_id, digest, size, self._host.clock.now())
            await asyncio.to_thread(make_room)
            limit = size_limit(self._host.manifest, name)
            upload = blobs.upload(digest, size, limit)
            try:
                upload.go_on_at(announced.offset)
                while part is not None:
                    known(self._host.coordinator.state, node_id)  # a revoked one stops here
                    self._ledger.message(node_id, kind, "up", part.ByteSize())
                    await asyncio.to_thread(upload.write, part.data)
                    moved, part = part.ByteSize(), None  # while the next may be long in coming
                    await place.rest(self._pace_s(node_id, "up", moved))
                    part = await place.read()
            finally:
                upload.pause()
            reply = await asyncio.to_thread(_finish, upload, size)
        self._ledger.message(node_id, kind, "down", reply.ByteSize())
        return reply

    async def GetBlob(  # noqa: N802
        self, request: pb.GetBlobRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.BlobPart]:
        """Send a blob from an offset on."""
        try:
            node_id = self._known(context)
            digest = digest_from_proto(request.digest)
            kind = kind_of(request.name)
            self._ledger.message(node_id, kind, "up", request.ByteSize())
            state = self._host.coordinator.state
            if is_private(state.manifest) and not may_read(state, node_id, digest):
                raise Refused(f"blob {digest[:12]} is another silo's, and not for this node")
            await self._verified(digest)
            for data in self._host.blobs.parts(digest, request.offset):
                known(self._host.coordinator.state, node_id)
                part = pb.BlobPart(data=data)
                self._ledger.message(node_id, kind, "down", part.ByteSize())
                yield part
                await asyncio.sleep(self._pace_s(node_id, "down", part.ByteSize()))
        except SmalltalkError as error:
            await abort(context, error)

    # --------------------------------------------------------------------------------- small

    def _counts(self, exchange: msg.Exchange) -> tuple[bool, int]:
        """Whether the result that a question brings counts, and which step of an expert is safe."""
        state, done, safe = self._host.coordinator.state, False, 0
        if exchange.finished is not None:
            done = state.is_finished(UnitKey.parse(exchange.finished.unit_id))
        if exchange.collected is not None:
            kept = state.collected.get(exchange.collected.unit_id)
            safe = kept[-1].step if kept else 0
        return done, safe

    def _pace_s(self, node_id: str, direction: Direction, size: int) -> float:
        return self._gate.pace_s(node_id, direction, size, self._host.clock.now())

    def _known(self, context: grpc.aio.ServicerContext) -> str:
        """Who calls, before anything that it says is read; a revoked node goes no further."""
        node_id = caller(context, self._host.clock)
        known(self._host.coordinator.state, node_id)
        return node_id

    async def _verified(self, digest: str) -> None:
        """Nothing wrong leaves; what is damaged or gone is made anew if the run needs it."""
        if self._host.blobs.is_verified(digest):
            return  # not behind uploads that are written and hashed
        try:
            await asyncio.to_thread(self._host.blobs.verify, digest)
        except SmalltalkError:
            self._host.blob_lost(digest)
            raise

    def _count(self, node_id: str, kind: str, request: Message, reply: Message) -> None:
        counted(self._ledger, node_id, kind, request, reply)


def _finish(upload: Upload, size: int) -> pb.BlobStateReply:
    """Make the upload count if all of it is here."""
    if upload.received < size:
        return pb.BlobStateReply(received=upload.received, complete=False)
    upload.finish()
    return pb.BlobStateReply(received=size, complete=True)
