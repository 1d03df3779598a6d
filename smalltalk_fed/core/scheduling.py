"""Which open unit a free node gets, and why. Pure functions over hard and soft state.

Rules, in this order:
1. A node gets units whose input it already has (it did the round before).
2. Units that have no such node, or whose node is away or busy with another unit; one whose
   node is here and free is kept for it.
3. Units that this node failed at, once every node that is here has tried.
4. When nothing is open: a copy of a straggler's unit, if it has run much longer than usual.
A unit that only its holder can do goes to nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from smalltalk_fed.core.leases import Lease, Leases
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey

# How long a unit is kept for the node that has its input, after that node was last heard
# of without a lease: nodes ask again within milliseconds of finishing.
RESERVE_S = 5.0
STRAGGLER_FACTOR = 2.0


def unleased(state: HardState, leases: Leases) -> list[UnitKey]:
    """Open units that nobody holds, in the order of work."""
    return [key for key in state.open_units() if key not in leases.by_unit]


def choose(
    state: HardState, leases: Leases, node_id: str, candidates: Sequence[UnitKey], now: float
) -> tuple[UnitKey, str] | None:
    """A unit for `node_id` out of `candidates` and the reason, or None."""
    free: list[UnitKey] = []
    failed_here: list[UnitKey] = []
    for key in candidates:
        holder = state.holder(key)
        if holder == node_id:
            return key, "this node has its input at hand"
        if state.pinned(key) or reserved(leases, holder, now):
            continue
        tried = {node for node, _ in leases.failures.get(key, ())}
        if node_id not in tried:
            free.append(key)
        elif all(other.node_id in tried for other in leases.present.values() if not other.gone):
            failed_here.append(key)
    if free:
        return free[0], "it is open"
    if failed_here:
        return failed_here[0], "every node that is here has tried it"
    return None


def reserved(leases: Leases, holder: str | None, now: float) -> bool:
    """Whether a unit waits for `holder`, who is here and free to take it."""
    presence = leases.present.get(holder) if holder else None
    if presence is None or presence.gone or presence.node_id in leases.by_node:
        return False
    return presence.node_id in leases.waiting or presence.seen + RESERVE_S > now


def straggler(
    state: HardState, leases: Leases, node_id: str, now: float
) -> tuple[Lease, str] | None:
    """A lease that `node_id` may take a copy of, and the reason, or None."""
    copies = state.manifest.config.run.spare_copies
    for key, held in leases.by_unit.items():
        due = copy_due(leases, held[0])
        if len(held) > copies or due is None or due > now or state.pinned(key):
            continue
        if all(lease.node_id != node_id for lease in held):
            return held[0], f"it has run for {now - held[0].since:.0f} s, much longer than usual"
    return None


def copy_due(leases: Leases, lease: Lease) -> float | None:
    """When a free node may take a copy of this lease's unit; None while nothing is known."""
    typical_s = leases.typical_s(lease.key.kind)
    if typical_s is None:
        return None
    return lease.since + max(STRAGGLER_FACTOR * typical_s, leases.lease_s)


def deadline(state: HardState, leases: Leases, now: float) -> float | None:
    """When time alone changes something: a lease or question ends, a reservation lapses."""
    times = [] if (due := leases.deadline()) is None else [due]
    if leases.waiting:
        later: list[float | None] = [leases.frozen_until]
        if unleased(state, leases):
            later += [
                presence.seen + RESERVE_S
                for presence in leases.present.values()
                if not presence.gone and presence.node_id not in leases.waiting
            ]
        later += [copy_due(leases, held[0]) for held in leases.by_unit.values()]
        times += [time for time in later if time is not None and time > now]
    return min(times, default=None)
