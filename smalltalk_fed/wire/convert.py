"""The conversation of a node with its coordinator: core messages to protobuf and back.

Rules: a pair of functions per message; `*_from_proto` trusts nothing (bounds in `values`);
the sender's id is an argument, because it comes from the certificate and never from a
message. Requests of the operator are `convert_admin`'s part. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.config.manifest import MAX_SEQUENCES
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import Malformed, TooLarge, shown
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.certificates import public_key_sha256
from smalltalk_fed.wire.token import SECRET_BYTES, secret_sha256
from smalltalk_fed.wire.values import (
    DIGEST_BYTES,
    KEY_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_NAME_CHARS,
    MAX_REASON_CHARS,
    MAX_RELEASED,
    MAX_SECONDS,
    MAX_SOFTWARE_CHARS,
    SIGNATURE_BYTES,
    addresses,
    cut,
    figures_from_proto,
    figures_to_proto,
    integer,
    number,
    result_from_proto,
    result_to_proto,
    text,
    unit_from_proto,
    unit_id_text,
    unit_to_proto,
)

# ----------------------------------------------------------------------------------- enrol


def enrol_from_proto(request: pb.EnrolRequest) -> msg.Enrol:
    """A newcomer's request: its secret and its key become digests.

    Raises:
        Malformed, TooLarge: a part can't be read.
        Unauthenticated: the certificate request is not signed by its own key.
    """
    if len(request.secret) != SECRET_BYTES:
        raise Malformed(f"a join token's secret has {SECRET_BYTES} bytes")
    return msg.Enrol(
        secret_sha256(request.secret),
        public_key_sha256(request.certificate_request),
        text(request.name, MAX_NAME_CHARS, "the node's name"),
    )


# ------------------------------------------------------------------------------------ join


def capabilities_to_proto(capabilities: msg.Capabilities) -> pb.Capabilities:
    """What a node says of itself."""
    return pb.Capabilities(
        device=shown(capabilities.device, MAX_SOFTWARE_CHARS),
        threads=capabilities.threads,
        memory_bytes=capabilities.memory_bytes,
        tokens_per_s=capabilities.tokens_per_s,
        corpus_digest=capabilities.corpus_digest,
        corpus_bytes=capabilities.corpus_bytes,
        software=shown(capabilities.software, MAX_SOFTWARE_CHARS),
        train_sequences=capabilities.train_sequences,
        heldout_sequences=capabilities.heldout_sequences,
    )


def capabilities_from_proto(capabilities: pb.Capabilities) -> msg.Capabilities:
    """Raises Malformed or TooLarge."""
    return msg.Capabilities(
        device=text(capabilities.device, MAX_SOFTWARE_CHARS, "the device's name"),
        threads=capabilities.threads,
        memory_bytes=integer(capabilities.memory_bytes, "the memory"),
        tokens_per_s=number(capabilities.tokens_per_s, "tokens a second", 0.0, MAX_SECONDS),
        corpus_digest=text(capabilities.corpus_digest, 2 * DIGEST_BYTES, "the corpus digest"),
        corpus_bytes=integer(capabilities.corpus_bytes, "the corpus's size"),
        software=text(capabilities.software, MAX_SOFTWARE_CHARS, "the software's name"),
        train_sequences=_sequences(capabilities.train_sequences),
        heldout_sequences=_sequences(capabilities.heldout_sequences),
    )


def join_to_proto(join: msg.Join) -> pb.JoinRequest:
    """The node's id stays behind: the certificate says it."""
    return pb.JoinRequest(
        incarnation=join.incarnation,
        protocol_version=join.protocol_version,
        signing_key=join.signing_key,
        capabilities=capabilities_to_proto(join.capabilities),
        seat=join.seat + 1,
        share=join.share,
    )


def join_from_proto(node_id: str, request: pb.JoinRequest) -> msg.Join:
    """`node_id` comes from the certificate. Raises Malformed or TooLarge."""
    if len(request.signing_key) != KEY_BYTES:
        raise Malformed("a signing key is a raw Ed25519 public key of 32 bytes")
    return msg.Join(
        node_id,
        integer(request.incarnation, "the incarnation"),
        request.protocol_version,
        request.signing_key,
        capabilities_from_proto(request.capabilities),
        request.seat - 1,
        text(request.share, MAX_NAME_CHARS, "who may have the experts' weights") or "never",
    )


@dataclass(frozen=True)
class Welcome:
    """All of the answer to `Join`: what the core says, the signed manifest, present addresses."""

    joined: msg.Joined
    manifest: bytes
    manifest_signature: bytes
    coordinator_key: bytes
    run_addresses: tuple[str, ...] = ()
    enrolment_addresses: tuple[str, ...] = ()


def welcome_to_proto(welcome: Welcome) -> pb.JoinReply:
    """The answer to `Join`."""
    return pb.JoinReply(
        node_id=welcome.joined.node_id,
        reason=cut(welcome.joined.reason),
        manifest=welcome.manifest,
        manifest_signature=welcome.manifest_signature,
        coordinator_key=welcome.coordinator_key,
        run_addresses=welcome.run_addresses,
        enrolment_addresses=welcome.enrolment_addresses,
    )


def welcome_from_proto(reply: pb.JoinReply) -> Welcome:
    """Raises Malformed or TooLarge. Whether the manifest is signed well is `signing`'s part."""
    if len(reply.manifest) > MAX_MANIFEST_BYTES:
        raise TooLarge(f"the run's manifest is over {MAX_MANIFEST_BYTES} bytes")
    if len(reply.coordinator_key) != KEY_BYTES or len(reply.manifest_signature) != SIGNATURE_BYTES:
        raise Malformed("the run's manifest came without the coordinator's key and signature")
    joined = msg.Joined(
        text(reply.node_id, MAX_NAME_CHARS, "the node's id"),
        text(reply.reason, MAX_REASON_CHARS, "the reason"),
    )
    signed = (reply.manifest, reply.manifest_signature, reply.coordinator_key)
    runs = addresses(reply.run_addresses, "run addresses")
    enrolments = addresses(reply.enrolment_addresses, "enrolment addresses")
    return Welcome(joined, *signed, runs, enrolments)


# -------------------------------------------------------------------------------- exchange


def exchange_to_proto(exchange: msg.Exchange) -> pb.ExchangeRequest:
    """The node's id stays behind: the certificate says it."""
    request = pb.ExchangeRequest(incarnation=exchange.incarnation, wants_work=exchange.wants_work)
    if exchange.working:
        request.working.unit_id = exchange.working.unit_id
        request.working.fraction = exchange.working.fraction
        request.working.figures.extend(figures_to_proto(exchange.working.figures))
    if exchange.finished:
        request.finished.CopyFrom(result_to_proto(exchange.finished))
    if exchange.failed:
        request.failed.unit_id = exchange.failed.unit_id
        request.failed.reason = cut(exchange.failed.reason)
    if exchange.collected:
        request.collected.CopyFrom(result_to_proto(exchange.collected))
    return request


def exchange_from_proto(node_id: str, request: pb.ExchangeRequest) -> msg.Exchange:
    """`node_id` comes from the certificate. Raises Malformed or TooLarge."""
    working = finished = failed = collected = None
    if request.HasField("working"):
        said = request.working
        working = msg.Working(
            unit_id_text(said.unit_id),
            number(said.fraction, "the fraction done", 0.0, 1.0),
            figures_from_proto(said.figures),
        )
    if request.HasField("finished"):
        finished = result_from_proto(request.finished)
    if request.HasField("failed"):
        failed = msg.Failure(
            unit_id_text(request.failed.unit_id),
            text(request.failed.reason, MAX_REASON_CHARS, "the reason"),
        )
    if request.HasField("collected"):
        collected = result_from_proto(request.collected)
    return msg.Exchange(
        node_id,
        integer(request.incarnation, "the incarnation"),
        working,
        finished,
        failed,
        request.wants_work,
        collected,
    )


def order_to_proto(order: msg.Order) -> pb.ExchangeReply:
    """The answer to `Exchange`."""
    reply = pb.ExchangeReply(
        reason=cut(order.reason),
        accepted=order.accepted,
        cancel=order.cancel,
        stop=order.stop,
        failed=order.failed,
        heartbeat_s=order.heartbeat_s,
        wait_s=order.wait_s,
        collected=order.collected,
    )
    if order.unit:
        reply.unit.CopyFrom(unit_to_proto(order.unit))
    return reply


def order_from_proto(reply: pb.ExchangeReply) -> msg.Order:
    """Raises Malformed or TooLarge."""
    return msg.Order(
        reason=text(reply.reason, MAX_REASON_CHARS, "the reason"),
        accepted=_optional_unit_id(reply.accepted),
        cancel=_optional_unit_id(reply.cancel),
        unit=unit_from_proto(reply.unit) if reply.HasField("unit") else None,
        stop=reply.stop,
        failed=reply.failed,
        heartbeat_s=number(reply.heartbeat_s, "the heartbeat", 0.01, 86400.0),
        wait_s=number(reply.wait_s, "the wait", 0.0, 86400.0),
        collected=integer(reply.collected, "the collected step"),
    )


# ----------------------------------------------------------------------------------- leave


def leave_to_proto(leave: msg.Leave) -> pb.LeaveRequest:
    """The node's id stays behind: the certificate says it."""
    return pb.LeaveRequest(incarnation=leave.incarnation, reason=cut(leave.reason))


def leave_from_proto(node_id: str, request: pb.LeaveRequest) -> msg.Leave:
    """`node_id` comes from the certificate. Raises Malformed or TooLarge."""
    return msg.Leave(
        node_id,
        integer(request.incarnation, "the incarnation"),
        text(request.reason, MAX_REASON_CHARS, "the reason"),
    )


def left_to_proto(left: msg.Left) -> pb.LeaveReply:
    """The answer to `Leave`."""
    return pb.LeaveReply(released=left.released)


def left_from_proto(reply: pb.LeaveReply) -> msg.Left:
    """Raises Malformed or TooLarge."""
    if len(reply.released) > MAX_RELEASED:
        raise TooLarge(f"the answer releases more than {MAX_RELEASED} units")
    return msg.Left(tuple(unit_id_text(unit_id) for unit_id in reply.released))


def _sequences(count: int) -> int:
    if count > MAX_SEQUENCES:
        raise TooLarge(f"a text of {count} sequences is over {MAX_SEQUENCES}")
    return count


def _optional_unit_id(value: str) -> str:
    return unit_id_text(value) if value else ""
