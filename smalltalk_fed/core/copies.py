"""When a free node may take a copy of a unit that somebody holds.

Rules: a unit may have `spare_copies` beside the first. It may be copied when it has run much
longer than usual, or when the fastest free node would finish it much sooner than its holder
by the holder's own progress. Nobody copies a unit that it failed at, or one that only its
holder can do; audits are short, and have no copies. With thousands of nodes asking, nothing
is looked at twice while no lease changed, nothing was reported and no faster node came.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator

from smalltalk_fed.core import handout
from smalltalk_fed.core.leases import Lease, Leases
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey, UnitKind

STRAGGLER_FACTOR = 2.0  # times the usual duration
SOONER_FACTOR = 1.5  # what is left must be so many times what a copy would take


class Copies:
    """Finds leases of which a waiting node may take a copy."""

    def __init__(self, state: HardState, leases: Leases) -> None:
        self._state, self._leases = state, leases
        self._seen = -1  # `leases.turnover` that the rest is of
        self._open: dict[UnitKey, None] | None = None  # `state.open`, likewise
        self._dues: list[float] = []  # when copies are due, earliest first
        self._cleared_speed = 0.0  # a node of this speed can't finish any of them much sooner

    def find(self, now: float) -> tuple[str, UnitKey, str] | None:
        """A node, the unit that it may take a copy of, and why; or None."""
        leases = self._leases
        fastest = next(leases.fastest_first(), None)
        if fastest is None:
            return None
        self._refresh()
        speed = leases.tokens_per_s(fastest)
        suspects: Iterable[Lease] = leases.reported.values()
        overdue = bool(self._dues) and self._dues[0] <= now
        if overdue or speed <= 0 or speed > self._cleared_speed:
            suspects = self._copyable()
        for lease in suspects:
            found = self._match(lease, now)
            if found is not None:
                return found
        leases.reported.clear()
        self._cleared_speed = max(self._cleared_speed, speed)
        return None

    def next_due(self, now: float) -> float:
        """When time alone lets a node take a copy; infinite if it does not."""
        self._refresh()
        place = bisect.bisect_right(self._dues, now)
        return self._dues[place] if place < len(self._dues) else math.inf

    def _refresh(self) -> None:
        units = self._state.open
        if self._seen == self._leases.turnover and self._open is units:
            return
        self._seen, self._open, self._cleared_speed = self._leases.turnover, units, 0.0
        dues = []
        for lease in self._copyable():
            due = self._due(lease)
            if due is not None:
                dues.append(due)
        self._dues = sorted(dues)

    def _match(self, lease: Lease, now: float) -> tuple[str, UnitKey, str] | None:
        leases, key = self._leases, lease.key
        held = leases.by_unit[key]
        if key not in self._state.open or key.kind is UnitKind.AUDIT:
            return None  # the run is paused, or what the unit needs was lost
        if held[0] is not lease or len(held) > self._state.manifest.config.run.spare_copies:
            return None
        tried = {node for node, _ in leases.failures.get(key, ())}
        node_id = next((node for node in leases.fastest_first() if node not in tried), None)
        if node_id is None or handout.pinned(self._state, key):
            return None
        due = self._due(lease)
        if due is not None and due <= now:
            why = f"it has run for {now - lease.since:.0f} s, much longer than usual"
            return node_id, key, why
        if key.kind is UnitKind.SHARD:
            return None  # too short to look at its progress
        left_s, copy_s = remaining_s(lease, now), self._copy_s(lease, node_id)
        if left_s > SOONER_FACTOR * copy_s + leases.lease_s:
            why = f"its node needs {left_s:.0f} s more, this one about {copy_s:.0f} s"
            return node_id, key, why
        return None

    def _copyable(self) -> Iterator[Lease]:
        """First leases of units with a copy to spare; of slices, whose leases are in the order
        of their age, the oldest only.
        """
        copies, units = self._state.manifest.config.run.spare_copies, self._state.open
        for key, held in self._leases.by_unit.items():
            if key not in units or key.kind is UnitKind.AUDIT:
                continue
            if len(held) <= copies and not handout.pinned(self._state, key):
                yield held[0]
                if key.kind is UnitKind.SHARD:
                    return

    def _due(self, lease: Lease) -> float | None:
        """When the lease has lasted too long; None while nothing is known."""
        typical_s = self._leases.typical_s(lease.key.kind)
        if typical_s is None:
            return None
        return lease.since + max(STRAGGLER_FACTOR * typical_s, self._leases.lease_s)

    def _copy_s(self, lease: Lease, node_id: str) -> float:
        """Seconds that `node_id` would need for the unit from what is collected of it."""
        collected = self._state.collected.get(lease.key.unit_id)
        steps = self._state.manifest.config.expert.steps
        begun = min(1.0, collected[-1].step / steps) if collected else 0.0
        leases = self._leases
        here, there = leases.tokens_per_s(node_id), leases.tokens_per_s(lease.node_id)
        ratio = there / here if here > 0 and there > 0 else 1.0
        return (1.0 - begun) / lease.rate * ratio if lease.rate > 0 else math.inf


def remaining_s(lease: Lease, now: float) -> float:
    """Seconds that the holder still needs by its own progress; 0 while it is not known."""
    if lease.rate <= 0:
        return 0.0
    return max(0.0, (1.0 - lease.fraction) / lease.rate - (now - lease.last_said))
