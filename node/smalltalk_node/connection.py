"""The node's side of gRPC: calls that raise our errors, bytes that are counted.

Rules: TLS trusts the run's authority alone and expects the fixed server name, whatever
address is dialled; a node without certificate can only use `Enrolment`. A status is turned
back into the error that it was made of (`SlowDown` by the wait that comes with it); no answer
is a `WorldError`, unless the enrolment port says that our certificate is the reason, since a
refused handshake can't. Every message is counted in the ledger with its frame. Blobs are
`transfer`'s part.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from smalltalk_fed import errors
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import PeerError, SmalltalkError, Unauthenticated, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.certificates import (
    SERVER_NAME,
    key_to_pem,
    make_request,
    to_der,
    to_pem,
)
from smalltalk_fed.wire.limits import WAIT_KEY
from smalltalk_fed.wire.values import cut
from smalltalk_node.identity import Identity, NodeFolder
from smalltalk_node.outgoing import Outgoing

CALL_TIMEOUT_S = 30.0
EXPLAIN_TIMEOUT_S = 5.0
EXPLAIN_EVERY_S = 20.0
DETAILS_CHARS_MAX = 2000
WAIT_MAX_S = 600.0  # whatever a coordinator says
MESSAGE_BYTES_MAX = 2 << 20
OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A home router forgets a silent connection within minutes; a long poll is silent.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The session decides when to try again; gRPC's own waiting must not come on top.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name the longest time that dialling takes: TCP and TLS are three round trips,
    # and packets get lost.
    ("grpc.min_reconnect_backoff_ms", 15_000),
)

_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_BY_HINT: dict[str, type[SmalltalkError]] = {
    kind.hint: kind
    for kind in (
        errors.Malformed,
        errors.Refused,
        errors.TooLarge,
        errors.Forbidden,
        errors.Unauthenticated,
    )
}


class NoAnswer(WorldError):
    """The coordinator could not be reached, or did not answer in time."""


def error_of(error: grpc.RpcError, address: str) -> SmalltalkError:
    """The error of ours that a failed call stands for."""
    code, details = error.code(), errors.shown(error.details() or "", DETAILS_CHARS_MAX)
    if code in _NO_ANSWER:
        # Our side found the handshake wrong; an alert would be the other side's verdict on us.
        if "SSL_ERROR_SSL" in details and "ALERT" not in details:
            return Unauthenticated(
                f"whoever answers at {address} is not the coordinator that the join token names "
                "(it has no certificate of the run's authority that is valid by this machine's "
                "clock); check the address and the clock, and ask the organiser."
            )
        return NoAnswer(f"no coordinator answers at {address} ({_short(details) or code.name}).")
    if (wait_s := _wait_s(error)) is not None:
        return errors.SlowDown(details, wait_s)
    kind = _BY_HINT.get(code.name)
    if kind is None:
        return WorldError(f"the coordinator at {address} failed ({code.name}: {_short(details)}).")
    return kind(details or f"refused by the coordinator at {address} without a reason")


def _wait_s(error: grpc.RpcError) -> float | None:
    """When to ask again, if that is all that was wrong."""
    for key, value in error.trailing_metadata() or ():
        if key == WAIT_KEY and str(value).isdecimal():
            return min(int(value) / 1000, WAIT_MAX_S)
    return None


def _short(details: str) -> str:
    """The last and most particular part of what gRPC says."""
    last = details.rpartition("last error: ")[2].rpartition("connect: ")[2]
    return " ".join(last.split())[:200]


class Newcomer:
    """The enrolment port: server TLS only. Use as a context manager."""

    def __init__(self, address: str, authority: bytes, outgoing: Outgoing | None = None) -> None:
        """`authority` is the run's CA certificate, DER or PEM."""
        self._address = address
        credentials = grpc.ssl_channel_credentials(root_certificates=to_pem(authority))
        self._channel = grpc.secure_channel(address, credentials, options=OPTIONS)
        self._stub = pb_grpc.EnrolmentStub((outgoing or Outgoing()).through(self._channel))

    def __enter__(self) -> Newcomer:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def enrol(self, secret: bytes, request: bytes, name: str) -> tuple[str, bytes]:
        """Ask to be let in; returns the node's id and its certificate (PEM).

        Raises:
            PeerError: refused, with the reason.
            WorldError: no answer.
        """
        message = pb.EnrolRequest(secret=secret, certificate_request=request, name=name)
        reply = self._call(self._stub.Enrol, message, CALL_TIMEOUT_S)
        return reply.node_id, reply.certificate

    def renew(self, certificate: bytes, request: bytes) -> bytes:
        """A new certificate (PEM) for the key of the old one."""
        message = pb.RenewRequest(certificate=to_der(certificate), certificate_request=request)
        renewed: bytes = self._call(self._stub.Renew, message, CALL_TIMEOUT_S).certificate
        return renewed

    def explain(self, certificate: bytes) -> pb.ExplainReply:
        """Whether the certificate (PEM, or empty) is welcome, why not, and what time it is."""
        message = pb.ExplainRequest(certificate=to_der(certificate) if certificate else b"")
        return self._call(self._stub.Explain, message, EXPLAIN_TIMEOUT_S)

    def _call(self, method: Callable[..., Any], message: Message, timeout_s: float) -> Any:
        try:
            return method(message, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self._address) from None


class Connection:
    """The run's port, mutual TLS. Any thread may call."""

    def __init__(
        self,
        folder: NodeFolder,
        identity: Identity,
        ledger: Ledger,
        outgoing: Outgoing | None = None,
    ) -> None:
        self._folder, self._identity, self.ledger = folder, identity, ledger
        self._outgoing = outgoing or Outgoing()
        self._explained_at = float("-inf")
        self._lock = threading.Lock()
        self._pending: set[grpc.Future] = set()
        self._interrupted = threading.Event()
        self._dial()

    def _dial(self) -> None:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self._folder.authority,
            private_key=key_to_pem(self._folder.key()),
            certificate_chain=self._folder.certificate,
        )
        address = self._identity.run_address
        self._channel = grpc.secure_channel(address, credentials, options=OPTIONS)
        self.stub = pb_grpc.RunStub(self._outgoing.through(self._channel))

    @property
    def node_id(self) -> str:
        """This node's id."""
        return self._identity.node_id

    def renew_certificate(self) -> None:
        """Get a new certificate for the same key, and use it from now on."""
        request = make_request(self._folder.key(), self._identity.name)
        with self._enrolment_port() as newcomer:
            self._folder.keep_certificate(newcomer.renew(self._folder.certificate, request))
        old = self._channel
        self._dial()
        old.close()

    # ---------------------------------------------------------------------------------- calls

    def join(self, join: msg.Join) -> convert.Welcome:
        """Present this process; the answer has the signed manifest.

        Raises:
            PeerError: refused, with the reason.
            WorldError: no answer.
        """
        reply = self.call(self.stub.Join, convert.join_to_proto(join), "join")
        return convert.welcome_from_proto(reply)

    def exchange(self, exchange: msg.Exchange, timeout_s: float) -> msg.Order:
        """Say what was done and is being done; held by the coordinator while there is no work."""
        request = convert.exchange_to_proto(exchange)
        return convert.order_from_proto(
            self.call(self.stub.Exchange, request, "exchange", timeout_s)
        )

    def leave(self, leave: msg.Leave, timeout_s: float) -> msg.Left:
        """Say goodbye; works after `interrupt`, too."""
        self._interrupted.clear()
        request = convert.leave_to_proto(leave)
        return convert.left_from_proto(self.call(self.stub.Leave, request, "leave", timeout_s))

    def call(
        self,
        method: Any,
        request: Message,
        kind: str,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """One request and its reply, counted under `kind`.

        Raises:
            PeerError, WorldError: as the status says.
        """
        self.ledger.message(self.node_id, kind, "up", request.ByteSize())
        # A future, so that Ctrl-C can end a long poll: a blocking call can't be cancelled.
        try:
            pending = method.future(request, timeout=timeout_s)
        except grpc.RpcError as error:  # it could not be turned into bytes, or not be recorded
            raise self.explained(error) from None
        with self._lock:
            self._pending.add(pending)
        try:
            if self._interrupted.is_set():
                pending.cancel()
            reply = pending.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self.explained(error) from None
        finally:
            with self._lock:
                self._pending.discard(pending)
        self.ledger.message(self.node_id, kind, "down", reply.ByteSize())
        return reply

    def interrupt(self) -> None:
        """End the calls under way, and let none begin but `leave`. For signal handlers."""
        self._interrupted.set()
        for pending in list(self._pending):
            pending.cancel()

    def explained(self, error: grpc.RpcError | grpc.FutureCancelledError) -> SmalltalkError:
        """As `error_of`; where nobody answered, the enrolment port is asked for the reason."""
        address = self._identity.run_address
        if isinstance(error, grpc.FutureCancelledError):
            return NoAnswer("the call was cancelled.")
        if self._outgoing.problem is not None:
            return self._outgoing.problem
        found = error_of(error, address)
        now = time.monotonic()
        silent = error.code() is grpc.StatusCode.UNAVAILABLE and isinstance(found, NoAnswer)
        if silent and now - self._explained_at >= EXPLAIN_EVERY_S:
            self._explained_at = now
            try:
                with self._enrolment_port() as port:
                    reply = port.explain(self._folder.certificate)
            except (PeerError, WorldError):
                return found
            if not reply.welcome:
                return Unauthenticated(cut(str(reply.reason)))
        return found

    def _enrolment_port(self) -> Newcomer:
        address, authority = self._identity.enrolment_address, self._folder.authority
        return Newcomer(address, authority, self._outgoing)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
