"""How a node dials, what a failed call stands for, and the enrolment port.

Rules: TLS trusts the run's authority alone and expects the fixed server name, whatever address
is dialled: whoever else answers is told nothing. A status is turned back into the error that it
was made of (`SlowDown` by the wait that comes with it); no answer is a `NoAnswer`. The enrolment
port has server TLS only, and is looked for at all addresses in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from smalltalk_fed import errors
from smalltalk_fed.errors import SmalltalkError, Unauthenticated, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire.certificates import SERVER_NAME, to_der, to_pem
from smalltalk_fed.wire.limits import WAIT_KEY
from smalltalk_node.outgoing import Outgoing

T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
EXPLAIN_TIMEOUT_S = 5.0
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


class Stranger(Unauthenticated):
    """Somebody answers who has no certificate of the run's authority; nothing was said to him."""


def error_of(error: grpc.RpcError, address: str) -> SmalltalkError:
    """The error of ours that a failed call stands for."""
    code, details = error.code(), errors.shown(error.details() or "", DETAILS_CHARS_MAX)
    if code in _NO_ANSWER:
        # Our side found the handshake wrong; an alert would be the other side's verdict on us.
        if "SSL_ERROR_SSL" in details and "ALERT" not in details:
            return Stranger(
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


def at_any(
    addresses: Sequence[str],
    authority: bytes,
    outgoing: Outgoing,
    act: Callable[[Newcomer], T],
) -> T:
    """Do `act` at the first of these enrolment ports where the coordinator answers.

    Raises what `act` raises; where nobody answers anywhere, what the last address gave.
    """
    failure: SmalltalkError = WorldError("this node knows no address; join in a new folder.")
    for address in addresses:
        try:
            with Newcomer(address, authority, outgoing) as newcomer:
                return act(newcomer)
        except (NoAnswer, Stranger) as error:
            failure = error
    raise failure
