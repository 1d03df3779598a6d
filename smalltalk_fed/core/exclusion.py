"""Puts nodes out of a run: revoked by the operator, or quarantined for wrong work.

Rules: its lease is free at once, its held question is answered with the reason, and it is
not present any more; from then on `admission.known` refuses it. Who began from weights that
fell with a quarantined node is told to drop them with its next heartbeat.
"""

from __future__ import annotations

from smalltalk_fed.core.dispatch import Dispatcher
from smalltalk_fed.core.leases import Leases
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.quarantine import quarantine
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey


class Exclusion:
    """Shuts nodes out."""

    def __init__(
        self, state: HardState, leases: Leases, outbox: Outbox, dispatch: Dispatcher
    ) -> None:
        self._state, self._leases, self._out, self._dispatch = state, leases, outbox, dispatch

    def shut_out(self, node_id: str, why: str) -> None:
        """Take away what a node has, and answer its question for the last time."""
        self._dispatch.release_node(node_id)
        waiting = self._leases.waiting.get(node_id)
        if waiting:
            self._dispatch.answer(waiting, why, stop=True, failed=True)
        self._leases.present.pop(node_id, None)
        self._leases.changes += 1

    def quarantine(self, node_id: str, reason: str, now: float) -> None:
        """Put a node out whose work was wrong; once is enough."""
        if self._state.nodes[node_id].quarantined:
            return
        event = quarantine(self._state, node_id, reason, now)
        brought = self._brought(node_id)
        self._out.emit(event)
        undone = f"; to be done again: {', '.join(event.undone[:8])}" if event.undone else ""
        self._out.decide(f"node {node_id} is quarantined", reason + undone)
        for unit_id, first in brought.items():
            self._drop_followers(UnitKey.parse(unit_id), first)
        self.shut_out(node_id, f"this node is quarantined: {reason}; ask the organiser")

    def _brought(self, node_id: str) -> dict[str, int]:
        """Unfinished experts that it brought weights of, and from which step on."""
        return {
            unit_id: by[node_id]
            for unit_id, by in self._state.contributors.items()
            if node_id in by
        }

    def _drop_followers(self, key: UnitKey, first: int) -> None:
        for lease in list(self._leases.by_unit.get(key, ())):
            if lease.start_step >= first:
                self._dispatch.release(lease)
                self._leases.dropped[lease.node_id] = key
