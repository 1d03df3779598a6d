"""How invitations, enrolments and revocations change hard state; `apply` folds one in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smalltalk_fed.core import events as ev
from smalltalk_fed.core.records import Invite, Node
from smalltalk_fed.errors import OurError

if TYPE_CHECKING:
    from smalltalk_fed.core.state import HardState


def apply(state: HardState, event: ev.Event) -> None:
    """Raises OurError for an event of another kind."""
    match event:
        case ev.InviteMade():
            state.invites[event.secret_sha256] = Invite(
                event.secret_sha256, event.expires_at, event.uses, event.name
            )
        case ev.InviteCancelled():
            state.invites[event.secret_sha256].cancelled = True
        case ev.NodeEnrolled():
            state.nodes[event.node_id] = Node(event.node_id, event.name, event.key_sha256)
            state.invites[event.secret_sha256].used_by.append(event.node_id)
        case ev.NodeJoined():
            node = state.nodes[event.node_id]
            state.joined -= node.takes_part
            node.signing_key = event.signing_key
            state.joined += node.takes_part
        case ev.NodeRevoked():
            node = state.nodes[event.node_id]
            state.joined -= node.takes_part
            node.revoked = event.reason
        case _:
            raise OurError(f"no rule for the event {type(event).__name__}")
