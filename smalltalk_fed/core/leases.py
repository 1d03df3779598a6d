"""Soft state: who is here, who holds which unit until when, who waits for work.

Lost in a restart, and rebuilt from what nodes say. Nothing is leased before `frozen_until`,
so that a node that still works on a unit can say so first. Deciding who gets what is the
coordinator's part (`scheduling.py`); this is the bookkeeping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from smalltalk_fed.core.messages import Capabilities
from smalltalk_fed.core.units import UnitKey, UnitKind


@dataclass
class Lease:
    """A unit held by one node until a time."""

    key: UnitKey
    node_id: str
    since: float
    until: float
    copy: bool = False
    fraction: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Presence:
    """A node's process, as last heard of."""

    node_id: str
    incarnation: int
    seen: float
    capabilities: Capabilities = Capabilities()
    gone: bool = False  # it said goodbye


@dataclass
class Waiting:
    """A question that is held until there is work or `until`."""

    conversation: int
    node_id: str
    incarnation: int
    until: float
    accepted: str = ""
    cancel: str = ""


class Leases:
    """All soft state of a run."""

    def __init__(self, lease_s: float, frozen_until: float) -> None:
        self.lease_s = lease_s
        self.frozen_until = frozen_until
        self.by_unit: dict[UnitKey, list[Lease]] = {}
        self.by_node: dict[str, Lease] = {}
        self.present: dict[str, Presence] = {}
        self.waiting: dict[str, Waiting] = {}
        self.failures: dict[UnitKey, list[tuple[str, str]]] = {}  # unit -> (node, reason)
        self._durations: dict[UnitKind, list[float]] = {}

    def grant(self, key: UnitKey, node_id: str, now: float, *, copy: bool = False) -> Lease:
        """Give `key` to the node; it held nothing before."""
        lease = Lease(key, node_id, now, now + self.lease_s, copy)
        self.by_unit.setdefault(key, []).append(lease)
        self.by_node[node_id] = lease
        return lease

    def release(self, lease: Lease) -> None:
        """Take a lease back; its unit may go to somebody else."""
        holders = self.by_unit.get(lease.key, [])
        if lease in holders:
            holders.remove(lease)
        if not holders:
            self.by_unit.pop(lease.key, None)
        if self.by_node.get(lease.node_id) is lease:
            del self.by_node[lease.node_id]

    def finish(self, key: UnitKey, node_id: str, now: float) -> float:
        """End all leases of a finished unit; other holders learn it with their next heartbeat.

        Returns the seconds that the finishing node held it, 0 if it held no lease.
        """
        seconds = 0.0
        for lease in list(self.by_unit.get(key, ())):
            if lease.node_id == node_id:
                seconds = now - lease.since
                self._durations.setdefault(key.kind, []).append(seconds)
            self.release(lease)
        self.failures.pop(key, None)
        return seconds

    def drop_node(self, node_id: str) -> tuple[str, ...]:
        """Release what a node holds; returns the units' ids."""
        lease = self.by_node.get(node_id)
        if lease is None:
            return ()
        self.release(lease)
        return (lease.key.unit_id,)

    def expired(self, now: float) -> list[Lease]:
        """Leases whose time is over."""
        return [lease for held in self.by_unit.values() for lease in held if lease.until <= now]

    def typical_s(self, kind: UnitKind) -> float | None:
        """Median duration of this kind of unit so far, or None."""
        durations = self._durations.get(kind)
        return median(durations[-64:]) if durations else None

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        times = [lease.until for held in self.by_unit.values() for lease in held]
        times += [waiting.until for waiting in self.waiting.values()]
        return min(times, default=None)
