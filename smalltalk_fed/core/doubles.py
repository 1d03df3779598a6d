"""A node's key used from two places at once: noticed and reported.

Rules: a machine runs one process of a node at a time, and every start has a larger number (its
incarnation). An older process that presents itself after a newer one, or that goes on asking,
runs somewhere else. A last question and a goodbye of a process that has ended may come late.
Somebody who has the key of a node's certificate and not the one that it signs with is no better.
Nothing is decided here: the newest process has the work, and who of the two is the thief is
for people to say. Soft state: after a restart of the coordinator both join anew, and are
noticed again. Two that speak under the same number are not told apart.
"""

from __future__ import annotations

from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.records import Node
from smalltalk_fed.errors import Refused

LATE_MESSAGES = 2  # of a process that was replaced: more than that are no accident
TOLD_EVERY_S = 300.0


class Doubles:
    """What was heard of other processes than the newest, by node."""

    def __init__(self, outbox: Outbox) -> None:
        self._out = outbox
        self.seen_at: dict[str, float] = {}  # node -> when it was last in two places
        self._late: dict[str, int] = {}  # node -> messages of older processes since it joined
        self._told_at: dict[str, float] = {}

    def newer(self, node_id: str) -> None:
        """A newer process of the node has joined."""
        self._late.pop(node_id, None)

    def forget(self, node_id: str) -> None:
        """The node is shut out."""
        for known in (self.seen_at, self._late, self._told_at):
            known.pop(node_id, None)

    def older(self, node_id: str, now: float, *, joins: bool = False) -> Refused:
        """The refusal of a process that is not the newest; `joins`: it presents itself."""
        self._late[node_id] = self._late.get(node_id, 0) + 1
        if joins or self._late[node_id] > LATE_MESSAGES:
            self._report(node_id, now, "an older process of it goes on after a newer one joined")
        return Refused(
            f"a newer process of node {node_id} is running; if it was not started by you, this "
            "node's key was copied: tell the organiser, who can shut the node out"
        )

    def check_key(self, node: Node, signing_key: bytes, now: float) -> None:
        """Whether a node that joins has the signing key of its first time.

        Raises:
            Refused: it has another one.
        """
        if node.signing_key in ("", signing_key.hex()):
            return
        self._report(
            node.node_id, now, "a process of it has another signing key than it joined with"
        )
        raise Refused(
            f"node {node.node_id} is registered with another signing key; if this machine's "
            "signing.key was lost or never used, ask the organiser for a new token"
        )

    def _report(self, node_id: str, now: float, why: str) -> None:
        self.seen_at[node_id] = now
        if now - self._told_at.get(node_id, float("-inf")) < TOLD_EVERY_S:
            return
        self._told_at[node_id] = now
        self._out.decide(
            f"node {node_id} is in two places",
            f"{why}; unless its operator knows of both, its key was copied: revoke it, and "
            "invite the machine again",
            warning=True,
        )
