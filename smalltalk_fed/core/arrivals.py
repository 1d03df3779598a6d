"""A node's process presents itself: its key, its place among earlier processes, its seat.

Rules: everything is checked before anything changes. Who does not say which text it has only
asks what the run is, gets the manifest with the answer, and is no part of the run: a node says
nothing of its text before it knows whether the run is private. A process that has presented
itself may do so again, after a restart of the coordinator.
"""

from __future__ import annotations

from smalltalk_fed.core import admission, seats
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.doubles import Doubles
from smalltalk_fed.core.leases import Leases, Presence
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.state import HardState


class Arrivals:
    """Takes `Join` in."""

    def __init__(self, state: HardState, leases: Leases, outbox: Outbox, doubles: Doubles) -> None:
        self._state, self._leases, self._out, self._doubles = state, leases, outbox, doubles

    def join(self, message: msg.Join, conversation: int, now: float) -> None:
        """Let a process in, and answer it.

        Raises:
            PeerError: not acceptable; nothing changed.
        """
        node = admission.check_join(self._state, message)
        self._doubles.check_key(node, message.signing_key, now)
        presence = self._leases.present.get(message.node_id)
        if presence and message.incarnation < presence.incarnation:
            raise self._doubles.older(node.node_id, now, joins=True)
        if not message.capabilities.corpus_digest:
            self._out.reply(conversation, msg.Joined(node.node_id, "this is the run"))
            return
        seat = seats.claim(self._state, message, now) if is_private(self._state.manifest) else None
        if not node.signing_key:
            self._out.emit(ev.NodeJoined(now, node.node_id, message.signing_key.hex()))
        if presence is None or presence.incarnation != message.incarnation:
            known = presence.tokens_per_s if presence else 0.0
            self._leases.changes += 1
            self._doubles.newer(node.node_id)
            self._leases.present[node.node_id] = Presence(
                node.node_id,
                message.incarnation,
                now,
                message.capabilities,
                tokens_per_s=known or message.capabilities.tokens_per_s,
            )
            self._out.decide(f"node {node.node_id} joined", f"it is called '{node.name}'")
        if seat is not None:
            self._take(seat, node.name)
        self._out.reply(conversation, msg.Joined(node.node_id, self._place(node.node_id)))

    def _take(self, seat: silo_ev.SeatTaken, name: str) -> None:
        self._out.emit(seat)
        self._out.decide(
            f"seat {seat.seat} is {name}'s ({seat.node_id})",
            f"{seat.train_sequences} training and {seat.heldout_sequences} held-out sequences; "
            f"its experts' weights: {seat.share}",
        )

    def _place(self, node_id: str) -> str:
        taken = seats.seat_taken_by(self._state, node_id)
        return f"part of the run, in seat {taken.seat}" if taken else "part of the run"
