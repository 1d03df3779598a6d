"""Who may enter a run: invitations, enrolment, revocation, readmission. Decisions only.

Rules: an invitation is known by its secret's digest alone; it counts uses, ends at a time,
and the same key may come again under the same invitation (its answer may have got lost). A
node's id follows from its key. The certificate is issued by the host once the event is
durable.
"""

from __future__ import annotations

import re

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.records import Node
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.state import HardState
from smalltalk_fed.errors import Forbidden, Malformed, Refused, Unauthenticated

SIGNING_KEY_BYTES = 32
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def known(state: HardState, node_id: str) -> Node:
    """The enrolled node of this id.

    Raises:
        Unauthenticated: nobody enrolled under it.
        Forbidden: it was revoked or quarantined.
    """
    node = state.nodes.get(node_id)
    if node is None:
        raise Unauthenticated(
            f"node '{node_id[:64]}' is not enrolled in this run; join with a token"
        )
    if node.revoked:
        raise Forbidden(f"node {node_id} was shut out: {node.revoked}")
    if node.quarantined:
        raise Forbidden(
            f"node {node_id} is quarantined ({node.quarantined}); ask the organiser to readmit it"
        )
    return node


def node_id_of(key_sha256: str) -> str:
    """A node's id follows from the key that its certificate is for."""
    return f"n-{key_sha256[:12]}"


def check_join(state: HardState, message: msg.Join) -> Node:
    """The node that joins.

    Raises:
        PeerError: unknown or shut out, another protocol version or corpus.
    """
    node = known(state, message.node_id)
    if message.protocol_version not in PROTOCOL_VERSIONS:
        supported = ", ".join(str(version) for version in PROTOCOL_VERSIONS)
        raise Refused(
            f"this node speaks protocol version {message.protocol_version}, the coordinator "
            f"{supported}; install a matching version of smalltalk-fed"
        )
    if len(message.signing_key) != SIGNING_KEY_BYTES:
        raise Malformed("the signing key must be a raw Ed25519 public key of 32 bytes")
    has = message.capabilities.corpus_digest
    if not has or is_private(state.manifest):
        return node  # it only asks what the run is; or has text of its own: `seats` looks at it
    wanted = state.manifest.corpus_digest
    if has != wanted:
        raise Refused(
            f"the run trains on the corpus {wanted[:12]}, this node has {has[:12]}; prepare or "
            "copy the run's corpus and name its folder with --corpus"
        )
    return node


def decide(
    state: HardState,
    message: msg.Enrol | msg.MakeInvite | msg.CancelInvite | msg.Revoke | msg.Readmit,
    now: float,
) -> tuple[ev.Event | None, msg.Answer]:
    """The event, if something changes, and the answer.

    Raises:
        PeerError: not acceptable, with the reason.
    """
    match message:
        case msg.Enrol():
            return _enrol(state, message, now)
        case msg.MakeInvite():
            if not _DIGEST.fullmatch(message.secret_sha256):
                raise Malformed("an invitation needs the SHA-256 of its secret")
            if message.uses < 1 or message.expires_at <= now:
                raise Refused("an invitation needs at least one use and an end in the future")
            if message.secret_sha256 in state.invites:  # said again: its answer got lost
                return None, msg.Done("invited")
            made = ev.InviteMade(
                now, message.secret_sha256, message.expires_at, message.uses, message.name
            )
            return made, msg.Done("invited")
        case msg.CancelInvite():
            found = [d for d in state.invites if message.prefix and d.startswith(message.prefix)]
            if len(found) != 1:
                raise Refused(f"'{message.prefix}' fits {len(found)} invitations; it must fit one")
            return ev.InviteCancelled(now, found[0]), msg.Done(f"invitation {found[0][:8]} is void")
        case msg.Revoke():
            node = _named(state, message.node_id)
            if node.revoked:
                return None, msg.Done(f"node {node.node_id} was shut out before: {node.revoked}")
            return ev.NodeRevoked(now, node.node_id, message.reason), msg.Done(
                f"node {node.node_id} is shut out"
            )
        case msg.Readmit():
            node = _named(state, message.node_id)
            if node.revoked:
                raise Refused(f"node {node.node_id} was shut out for good: {node.revoked}")
            if not node.quarantined:
                return None, msg.Done(f"node {node.node_id} is not quarantined")
            answer = msg.Done(f"node {node.node_id} may work again, as a newcomer")
            return ev.NodeReadmitted(now, node.node_id), answer


def _named(state: HardState, node_id: str) -> Node:
    node = state.nodes.get(node_id)
    if node is None:
        raise Refused(f"no node is called '{node_id}'; `status` lists them")
    return node


def _enrol(state: HardState, message: msg.Enrol, now: float) -> tuple[ev.Event | None, msg.Answer]:
    if not _NAME.fullmatch(message.name):
        raise Malformed("a node's name has 1 to 64 letters, digits, dots, dashes or underscores")
    invite = state.invites.get(message.secret_sha256)
    if invite is None:
        raise Unauthenticated(
            "this token was not made by this run; ask the organiser for a new one"
        )
    node_id = node_id_of(message.key_sha256)
    if node_id in state.nodes:
        if node_id not in invite.used_by:
            raise Refused(f"node {node_id} is enrolled already; run it, or use a new folder")
        known(state, node_id)  # a revoked key does not come back
        return None, msg.Enrolled(node_id)
    if invite.cancelled:
        raise Unauthenticated("this token was cancelled; ask the organiser for a new one")
    if invite.expires_at <= now:
        raise Unauthenticated("this token has expired; ask the organiser for a new one")
    if len(invite.used_by) >= invite.uses:
        raise Unauthenticated("this token has been used; ask the organiser for a new one")
    event = ev.NodeEnrolled(now, node_id, message.name, message.key_sha256, invite.secret_sha256)
    return event, msg.Enrolled(node_id)
