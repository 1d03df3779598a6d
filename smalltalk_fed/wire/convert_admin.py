"""Requests of the operator: core messages to protobuf and back.

Rules as in `convert`. An invitation's secret never travels, only its digest. No I/O.
"""

from __future__ import annotations

from smalltalk_fed.core import messages as msg
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.values import (
    DIGEST_BYTES,
    MAX_NAME_CHARS,
    MAX_REASON_CHARS,
    MAX_SECONDS,
    cut,
    digest_from_proto,
    digest_to_proto,
    number,
    text,
)


def invite_to_proto(invite: msg.MakeInvite) -> pb.InviteRequest:
    """Only the secret's digest travels."""
    return pb.InviteRequest(
        secret_sha256=digest_to_proto(invite.secret_sha256),
        expires_at=invite.expires_at,
        uses=invite.uses,
        name=invite.name,
    )


def invite_from_proto(request: pb.InviteRequest) -> msg.MakeInvite:
    """Raises Malformed or TooLarge."""
    return msg.MakeInvite(
        digest_from_proto(request.secret_sha256),
        number(request.expires_at, "the invitation's end", 0.0, MAX_SECONDS),
        request.uses,
        text(request.name, MAX_NAME_CHARS, "the invitation's name"),
    )


def cancel_invite_to_proto(cancel: msg.CancelInvite) -> pb.CancelInviteRequest:
    """Withdraw an invitation."""
    return pb.CancelInviteRequest(prefix=cancel.prefix)


def cancel_invite_from_proto(request: pb.CancelInviteRequest) -> msg.CancelInvite:
    """Raises TooLarge."""
    return msg.CancelInvite(text(request.prefix, 2 * DIGEST_BYTES, "the prefix"))


def revoke_to_proto(revoke: msg.Revoke) -> pb.RevokeRequest:
    """Shut a node out."""
    return pb.RevokeRequest(node_id=revoke.node_id, reason=cut(revoke.reason))


def revoke_from_proto(request: pb.RevokeRequest) -> msg.Revoke:
    """Raises TooLarge."""
    return msg.Revoke(
        text(request.node_id, MAX_NAME_CHARS, "the node's id"),
        text(request.reason, MAX_REASON_CHARS, "the reason") or msg.Revoke("").reason,
    )


def readmit_to_proto(readmit: msg.Readmit) -> pb.ReadmitRequest:
    """Let a quarantined node work again."""
    return pb.ReadmitRequest(node_id=readmit.node_id)


def readmit_from_proto(request: pb.ReadmitRequest) -> msg.Readmit:
    """Raises TooLarge."""
    return msg.Readmit(text(request.node_id, MAX_NAME_CHARS, "the node's id"))


def pause_to_proto(pause: msg.Pause) -> pb.PauseRequest:
    """Give out no more work."""
    return pb.PauseRequest(reason=cut(pause.reason))


def pause_from_proto(request: pb.PauseRequest) -> msg.Pause:
    """Raises TooLarge."""
    return msg.Pause(text(request.reason, MAX_REASON_CHARS, "the reason") or msg.Pause().reason)


def done_to_proto(done: msg.Done) -> pb.AdminReply:
    """The answer to an operator."""
    return pb.AdminReply(reason=cut(done.reason))


def done_from_proto(reply: pb.AdminReply) -> msg.Done:
    """Raises TooLarge."""
    return msg.Done(text(reply.reason, MAX_REASON_CHARS, "the reason"))
