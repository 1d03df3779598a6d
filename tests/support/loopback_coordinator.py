"""A coordinator for the node's tests: generated stubs, real sockets, real mutual TLS.

It keeps blobs in memory, counts every byte it sees, and breaks where a test tells it to.
What it answers to Join and Exchange is the test's (`script`).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import BlobRef, Unit
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger, kind_of
from smalltalk_fed.wire import convert, convert_transfer
from smalltalk_fed.wire.certificates import (
    CertificateAuthority,
    certificate_facts,
    key_to_pem,
    make_key,
    make_request,
    verify_issued_by,
)
from smalltalk_fed.wire.limits import WAIT_KEY
from smalltalk_fed.wire.token import JoinToken
from smalltalk_fed.worksite.identity import Identity, NodeFolder

PART_BYTES = 64 * 1024


@dataclass
class Behaviour:
    """What goes wrong, and what is answered."""

    put_breaks_after: int | None = None  # parts of an upload that are taken; then UNAVAILABLE
    put_stalls_after: int | None = None  # parts of an upload that are taken; then no more
    get_breaks_after: int | None = None  # parts of a download that are sent
    get_stalls_after: int | None = None
    get_sends: bytes | None = None  # other bytes than asked for
    refusal: tuple[grpc.StatusCode, str] | None = None  # of every BlobState
    explanation: str = ""  # why no certificate is welcome
    looks_at_the_end: bool = False  # a certificate that ended is not welcome
    renewal_refusal: tuple[grpc.StatusCode, str] | None = None
    clock_s: float = 0.0  # ahead of ours
    slow_down: dict[str, int] = field(default_factory=dict)  # method -> calls that come too often
    join: Callable[[msg.Join], convert.Welcome] | None = None
    exchange: Callable[[msg.Exchange], msg.Order] | None = None
    sign: Callable[[msg.Exchange, Unit], bytes] | None = None  # a unit that is handed out


class Loopback(pb_grpc.RunServicer, pb_grpc.EnrolmentServicer):
    """Both services; `serving` binds them to two ports."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.authority = authority
        self.behaviour = Behaviour()
        self.blobs: dict[str, bytes] = {}
        self.partial: dict[str, bytes] = {}
        self.ledger = Ledger()
        self.joins: list[msg.Join] = []
        self.looks: list[msg.Join] = []
        self.exchanges: list[msg.Exchange] = []
        self.left: list[msg.Leave] = []
        self.uploads: list[tuple[str, str, int]] = []  # unit, name, offset
        self.released = threading.Event()  # ends a long poll of `held`

    # ------------------------------------------------------------------------------ enrolment

    def Enrol(self, request: Any, context: Any) -> pb.EnrolReply:  # noqa: N802
        if request.secret != b"0123456789abcdef":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token was not made by this run")
        node_id = "n-" + convert.enrol_from_proto(request).key_sha256[:12]
        pem = self.authority.issue_node(request.certificate_request, node_id, time.time())
        return pb.EnrolReply(node_id=node_id, certificate=pem)

    def Renew(self, request: Any, context: Any) -> pb.EnrolReply:  # noqa: N802
        if self.behaviour.renewal_refusal:
            context.abort(*self.behaviour.renewal_refusal)
        node_id = certificate_facts(request.certificate).node_id
        pem = self.authority.issue_node(request.certificate_request, node_id, time.time())
        return pb.EnrolReply(node_id=node_id, certificate=pem)

    def Explain(self, request: Any, context: Any) -> pb.ExplainReply:  # noqa: N802
        now = time.time() + self.behaviour.clock_s
        try:
            verify_issued_by(self.authority.certificate_der, request.certificate)
        except Exception as error:
            return pb.ExplainReply(reason=str(error), welcome=False, now=now)
        reason = self.behaviour.explanation
        if self.behaviour.looks_at_the_end:
            reason = reason or certificate_facts(request.certificate).problem(now)
        return pb.ExplainReply(reason=reason or "welcome", welcome=not reason, now=now)

    # ------------------------------------------------------------------------------------ run

    def Join(self, request: Any, context: Any) -> pb.JoinReply:  # noqa: N802
        self._slow_down("Join", context)
        assert self.behaviour.join is not None
        node_id = self._node(context)
        join = convert.join_from_proto(node_id, request)
        # Who says nothing of its text only asks what the run is.
        (self.joins if join.capabilities.corpus_digest else self.looks).append(join)
        try:
            reply = convert.welcome_to_proto(self.behaviour.join(join))
        except grpc.RpcError as error:
            context.abort(error.args[0], error.args[1])
        return self._counted(node_id, "join", request, reply)

    def Exchange(self, request: Any, context: Any) -> pb.ExchangeReply:  # noqa: N802
        self._slow_down("Exchange", context)
        assert self.behaviour.exchange is not None
        node_id = self._node(context)
        exchange = convert.exchange_from_proto(node_id, request)
        self.exchanges.append(exchange)
        try:
            order = self.behaviour.exchange(exchange)
        except grpc.RpcError as error:
            context.abort(error.args[0], error.args[1])
        reply = convert.order_to_proto(order)
        if order.unit is not None and self.behaviour.sign is not None:
            reply.unit_signature = self.behaviour.sign(exchange, order.unit)
        return self._counted(node_id, "exchange", request, reply)

    def Leave(self, request: Any, context: Any) -> pb.LeaveReply:  # noqa: N802
        node_id = self._node(context)
        self.left.append(convert.leave_from_proto(node_id, request))
        return self._counted(node_id, "leave", request, convert.left_to_proto(msg.Left(())))

    def BlobState(self, request: Any, context: Any) -> pb.BlobStateReply:  # noqa: N802
        self._slow_down("BlobState", context)
        if self.behaviour.refusal:
            context.abort(*self.behaviour.refusal)
        digest = request.digest.hex()
        complete = digest in self.blobs
        received = len(self.blobs.get(digest, self.partial.get(digest, b"")))
        reply = pb.BlobStateReply(received=received, complete=complete)
        return self._counted(self._node(context), "blob_state", request, reply)

    def PutBlob(self, request_iterator: Any, context: Any) -> pb.BlobStateReply:  # noqa: N802
        self._slow_down("PutBlob", context)
        node_id, upload = self._node(context), None
        for taken, part in enumerate(request_iterator, start=1):
            if upload is None:
                upload = convert_transfer.upload_from_proto(part)
                self.uploads.append((upload.unit_id, upload.ref.name, upload.offset))
                digest, kind = upload.ref.digest, kind_of(upload.ref.name, upload.unit_id)
                assert len(self.partial.get(digest, b"")) == upload.offset
            self.ledger.message(node_id, kind, "up", part.ByteSize())
            self.partial[digest] = self.partial.get(digest, b"") + part.data
            if taken == self.behaviour.put_stalls_after:
                self._wait_for_hanging_up(context)
            if taken == self.behaviour.put_breaks_after:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        assert upload is not None
        data = self.partial[digest]
        complete = len(data) == upload.ref.size
        if complete:
            assert hashlib.sha256(data).hexdigest() == digest
            self.blobs[digest] = self.partial.pop(digest)
        reply = pb.BlobStateReply(received=len(data), complete=complete)
        self.ledger.message(node_id, kind, "down", reply.ByteSize())
        return reply

    def GetBlob(self, request: Any, context: Any) -> Iterator[pb.BlobPart]:  # noqa: N802
        self._slow_down("GetBlob", context)
        node_id, kind = self._node(context), kind_of(request.name)
        self.ledger.message(node_id, kind, "up", request.ByteSize())
        data = self.behaviour.get_sends or self.blobs.get(request.digest.hex())
        if data is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the coordinator has no such blob")
            return
        for number, start in enumerate(range(request.offset, len(data), PART_BYTES)):
            if number == self.behaviour.get_stalls_after:
                self._wait_for_hanging_up(context)
            if number == self.behaviour.get_breaks_after:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
            part = pb.BlobPart(data=data[start : start + PART_BYTES])
            self.ledger.message(node_id, kind, "down", part.ByteSize())
            yield part

    # ---------------------------------------------------------------------------------- small

    def put(self, name: str, data: bytes) -> BlobRef:
        """Have a blob, as if somebody had uploaded it."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return BlobRef(name, digest, len(data))

    @staticmethod
    def _wait_for_hanging_up(context: Any) -> None:
        hung_up = threading.Event()
        if context.add_callback(hung_up.set):
            hung_up.wait()

    def _slow_down(self, method: str, context: Any) -> None:
        left = self.behaviour.slow_down.get(method, 0)
        if left:
            self.behaviour.slow_down[method] = left - 1
            context.set_trailing_metadata(((WAIT_KEY, "10"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "asked more than 20 times a second")

    def _node(self, context: Any) -> str:
        return certificate_facts(context.auth_context()["x509_pem_cert"][0]).node_id

    def _counted(self, node_id: str, kind: str, request: Any, reply: Any) -> Any:
        self.ledger.message(node_id, kind, "up", request.ByteSize())
        self.ledger.message(node_id, kind, "down", reply.ByteSize())
        return reply


def refusing(code: grpc.StatusCode, details: str) -> grpc.RpcError:
    """What a script raises to refuse."""
    return grpc.RpcError(code, details)


@dataclass
class Served:
    """A running loopback coordinator."""

    loopback: Loopback
    run_address: str
    enrolment_address: str
    servers: list[grpc.Server]
    mutual: grpc.ServerCredentials

    def stop_run_port(self) -> None:
        """Nobody is at the run's port until it is started again."""
        self.servers[0].stop(0).wait()

    def start_run_port(self) -> None:
        """Serve at the same address again."""
        server = grpc.server(ThreadPoolExecutor(8))
        pb_grpc.add_RunServicer_to_server(self.loopback, server)
        server.add_secure_port(self.run_address, self.mutual)
        server.start()
        self.servers[0] = server

    def token(self, secret: bytes = b"0123456789abcdef") -> JoinToken:
        """A join token for it."""
        der = self.loopback.authority.certificate_der
        return JoinToken(self.run_address, self.enrolment_address, der, secret, 2_000_000_000)

    def node_folder(self, path: Path, node_id: str = "n-1", days: float = 30) -> NodeFolder:
        """A node folder that is enrolled here."""
        folder, authority = NodeFolder.open(path), self.loopback.authority
        pem = authority.issue_node(make_request(folder.key(), "box"), node_id, time.time(), days)
        folder.keep_certificate(pem, authority.certificate_der)
        folder.keep_identity(Identity(node_id, "box", self.run_address, self.enrolment_address))
        return folder


@contextlib.contextmanager
def serving(authority: CertificateAuthority | None = None) -> Iterator[Served]:
    """Both ports on loopback, until the end."""
    authority = authority or CertificateAuthority.create("test", time.time())
    loopback, key = Loopback(authority), make_key()
    pair = [(key_to_pem(key), authority.issue_server(key, ["127.0.0.1"], time.time()))]
    mutual = grpc.ssl_server_credentials(pair, authority.certificate_pem, True)
    servers, addresses = [], []
    for add, credentials in (
        (pb_grpc.add_RunServicer_to_server, mutual),
        (pb_grpc.add_EnrolmentServicer_to_server, grpc.ssl_server_credentials(pair)),
    ):
        server = grpc.server(ThreadPoolExecutor(8))
        add(loopback, server)
        addresses.append(f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}")
        server.start()
        servers.append(server)
    try:
        yield Served(loopback, *addresses, servers, mutual)
    finally:
        loopback.released.set()
        for server in servers:
            server.stop(0).wait()
