"""Soft state: who is here, who holds which unit until when, who waits for work.

Lost in a restart, and rebuilt from what nodes say. Nothing is leased before `frozen_until`,
so that a node that still works on a unit can say so first. Deciding who gets what is
`scheduling`'s part; this is the bookkeeping, cheap for thousands of nodes.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from smalltalk_fed.core.messages import Capabilities, Working
from smalltalk_fed.core.units import UnitKey, UnitKind

DURATIONS_KEPT = 64


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
    first_said: tuple[float, float] | None = None  # time and fraction of the first heartbeat
    last_said: float = 0.0
    start_step: int = -1  # that an expert was handed out at; -1: handed out before a restart

    def said(self, working: Working, now: float) -> None:
        """Note what a heartbeat says."""
        self.fraction, self.last_said = working.fraction, now
        self.figures = dict(working.figures)
        if self.first_said is None and working.fraction > 0:
            self.first_said = (now, working.fraction)

    @property
    def rate(self) -> float:
        """Fraction of the unit done in a second; 0 while it is not known."""
        if self.first_said is None or self.last_said <= self.first_said[0]:
            return 0.0
        began, fraction = self.first_said
        return max(0.0, self.fraction - fraction) / (self.last_said - began)


@dataclass
class Presence:
    """A node's process, as last heard of."""

    node_id: str
    incarnation: int
    seen: float
    capabilities: Capabilities = Capabilities()
    gone: bool = False  # it said goodbye
    tokens_per_s: float = 0.0  # as measured in its last router round, or as it says
    expected: float = 0.0  # when it was told to ask again


@dataclass
class Waiting:
    """A question that is held until there is work or `until`."""

    conversation: int
    node_id: str
    incarnation: int
    until: float
    accepted: str = ""
    cancel: str = ""


class Timers:
    """The earliest of many times by name; most of them move later before they are due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._queued: dict[str, float] = {}

    def set(self, name: str, time: float) -> None:
        """Let `name` be due at `time`."""
        self._due[name] = time
        if name not in self._queued or time < self._queued[name]:
            self._queued[name] = time
            heapq.heappush(self._heap, (time, name))

    def drop(self, name: str) -> None:
        """Forget `name`."""
        self._due.pop(name, None)

    def earliest(self) -> tuple[float, str] | None:
        """The earliest time and its name."""
        while self._heap:
            time, name = self._heap[0]
            due = self._due.get(name)
            if due == time:
                return time, name
            heapq.heappop(self._heap)
            if self._queued.get(name) == time:
                del self._queued[name]
                if due is not None:
                    self.set(name, due)
        return None


class Leases:
    """All soft state of a run."""

    def __init__(self, lease_s: float, frozen_until: float, now: float) -> None:
        self.lease_s = lease_s
        self.began = now  # of a node not heard of since, all before that is unknown
        self.frozen_until = frozen_until
        self.by_unit: dict[UnitKey, list[Lease]] = {}
        self.by_node: dict[str, Lease] = {}
        self.present: dict[str, Presence] = {}
        self.waiting: dict[str, Waiting] = {}
        self.failures: dict[UnitKey, list[tuple[str, str]]] = {}  # unit -> (node, reason)
        # Those after which a result was accepted that could not be used: they count on.
        self.unusable: dict[UnitKey, list[tuple[str, str]]] = {}
        self.held: dict[UnitKey, set[str]] = {}  # unit -> nodes that had it, since `began`
        self.dropped: dict[str, UnitKey] = {}  # node -> unit that it began from what counts no more
        self.changes = 0  # grows whenever something changed that who gets what depends on
        self.turnover = 0  # leases granted and released
        self.reported: dict[str, Lease] = {}  # by node, since somebody looked and cleared it
        self.watched: set[str] = set()  # nodes that free units are kept for
        self._by_speed: list[tuple[float, float, int, str]] = []  # held questions, slowest first
        self._place: dict[str, tuple[float, float, int, str]] = {}
        self._asked = 0
        self._lease_ends = Timers()
        self._question_ends = Timers()
        self._durations: dict[UnitKind, list[float]] = {}
        self._typical_s: dict[UnitKind, float] = {}

    # ------------------------------------------------------------------------------- leases

    def grant(self, key: UnitKey, node_id: str, now: float, *, copy: bool = False) -> Lease:
        """Give `key` to the node; it held nothing before."""
        lease = Lease(key, node_id, now, now + self.lease_s, copy)
        self.by_unit.setdefault(key, []).append(lease)
        self.by_node[node_id] = lease
        self.held.setdefault(key, set()).add(node_id)
        self.changes += 1
        self.turnover += 1
        self._lease_ends.set(node_id, lease.until)
        return lease

    def renew(self, lease: Lease, working: Working, now: float) -> None:
        """Prolong a lease whose holder was heard of."""
        lease.until = now + self.lease_s
        self._lease_ends.set(lease.node_id, lease.until)
        lease.said(working, now)
        self.reported[lease.node_id] = lease

    def release(self, lease: Lease) -> None:
        """Take a lease back; its unit may go to somebody else."""
        self.changes += 1
        self.turnover += 1
        self.reported.pop(lease.node_id, None)
        holders = self.by_unit.get(lease.key, [])
        if lease in holders:
            holders.remove(lease)
        if not holders:
            self.by_unit.pop(lease.key, None)
        if self.by_node.get(lease.node_id) is lease:
            del self.by_node[lease.node_id]
            self._lease_ends.drop(lease.node_id)

    def finish(self, key: UnitKey, node_id: str, now: float) -> float:
        """End all leases of a finished unit; other holders learn it with their next heartbeat.

        Returns the seconds that the finishing node held it, 0 if it held no lease.
        """
        seconds = 0.0
        for lease in list(self.by_unit.get(key, ())):
            if lease.node_id == node_id:
                seconds = now - lease.since
                durations = self._durations.setdefault(key.kind, [])
                durations.append(seconds)
                del durations[:-DURATIONS_KEPT]
                self._typical_s[key.kind] = median(durations)
            self.release(lease)
        self.failures.pop(key, None)
        self.held.pop(key, None)
        return seconds

    def expired(self, now: float) -> list[Lease]:
        """Leases whose time is over; the caller releases them."""
        found = []
        while (first := self._lease_ends.earliest()) is not None and first[0] <= now:
            self._lease_ends.drop(first[1])
            found.append(self.by_node[first[1]])
        return found

    def may_hand_in(self, key: UnitKey, node_id: str) -> bool:
        """Whether a result of this unit may be the node's work.

        Who held what is forgotten in a restart: of a unit that nobody holds it may.
        """
        return key not in self.by_unit or node_id in self.held.get(key, ())

    def typical_s(self, kind: UnitKind) -> float | None:
        """Median duration of this kind of unit of late, or None."""
        return self._typical_s.get(kind)

    # ---------------------------------------------------------------------------- questions

    def hold(self, waiting: Waiting) -> None:
        """Hold a question; the node's earlier one is forgotten."""
        self.unhold(waiting.node_id)
        self.waiting[waiting.node_id] = waiting
        self._question_ends.set(waiting.node_id, waiting.until)
        self._asked += 1
        speed = self.tokens_per_s(waiting.node_id)
        place = (speed, -waiting.until, -self._asked, waiting.node_id)
        self._place[waiting.node_id] = place
        bisect.insort(self._by_speed, place)
        self._note(waiting.node_id)

    def unhold(self, node_id: str) -> Waiting | None:
        """The node's question, which is held no longer."""
        place = self._place.pop(node_id, None)
        if place is not None:
            del self._by_speed[bisect.bisect_left(self._by_speed, place)]
            self._question_ends.drop(node_id)
            self._note(node_id)
        return self.waiting.pop(node_id, None)

    def fastest_first(self) -> Iterator[str]:
        """Nodes whose questions are held; of equal ones who asked first."""
        return (place[3] for place in reversed(self._by_speed))

    def slowest_first(self) -> Iterator[str]:
        """Nodes whose questions are held; of equal ones who asked last."""
        return (place[3] for place in self._by_speed)

    def questions_due(self, now: float) -> list[Waiting]:
        """Questions that were held as long as the run allows; they are held no longer."""
        found = []
        while (first := self._question_ends.earliest()) is not None and first[0] <= now:
            waiting = self.unhold(first[1])
            if waiting is not None:
                found.append(waiting)
        return found

    # ------------------------------------------------------------------------------- nodes

    def heard(self, presence: Presence, now: float) -> None:
        """A node said something."""
        presence.seen, presence.gone = now, False
        self._note(presence.node_id)

    def _note(self, node_id: str) -> None:
        if node_id in self.watched:
            self.changes += 1

    def last_there(self, presence: Presence, now: float) -> float:
        """When a node was here for the last time: now, if it waits, works or is to ask again."""
        if presence.node_id in self.waiting or presence.node_id in self.by_node:
            return now
        return presence.seen if presence.gone else max(presence.seen, min(presence.expected, now))

    def tokens_per_s(self, node_id: str) -> float:
        """The node's speed, 0 if it is not known."""
        presence = self.present.get(node_id)
        return presence.tokens_per_s if presence else 0.0

    def deadline(self) -> float | None:
        """When a lease or a held question ends."""
        firsts = (self._lease_ends.earliest(), self._question_ends.earliest())
        return min((first[0] for first in firsts if first is not None), default=None)
