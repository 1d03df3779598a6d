"""Who should get what, looked at anew every time: the naive twin of the core's bookkeeping."""

from __future__ import annotations

import math

from smalltalk_fed.core import handout, scheduling
from smalltalk_fed.core.copies import SOONER_FACTOR, STRAGGLER_FACTOR, remaining_s
from smalltalk_fed.core.leases import Lease, Leases
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey, UnitKind


def free_units(state: HardState, leases: Leases) -> list[UnitKey]:
    """Open units that nobody holds."""
    units = state.phase_units()
    return [k for k in units if not state.is_finished(k) and k not in leases.by_unit]


def first_copies(state: HardState, leases: Leases) -> list[tuple[UnitKey, Lease]]:
    """Units with a copy to spare, and their first leases."""
    copies = state.manifest.config.run.spare_copies
    return [
        (key, held[0])
        for key, held in leases.by_unit.items()
        if key in state.open and len(held) <= copies and may_be_copied(state, key)
    ]


def may_be_copied(state: HardState, key: UnitKey) -> bool:
    """Whether a second node may do it beside the first."""
    return not handout.pinned(state, key) and key.kind is not UnitKind.AUDIT


def copy_due(leases: Leases, lease: Lease) -> float:
    """When a lease has lasted too long."""
    typical_s = leases.typical_s(lease.key.kind)
    if typical_s is None:
        return math.inf
    return lease.since + max(STRAGGLER_FACTOR * typical_s, leases.lease_s)


def may_copy(state: HardState, leases: Leases, now: float) -> list[tuple[str, UnitKey]]:
    """Nodes that wait and units that they should have got a copy of."""
    found = []
    for key, lease in first_copies(state, leases):
        tried = {node for node, _ in leases.failures.get(key, ())}
        able = [node for node in leases.waiting if node not in tried]
        if not able:
            continue
        node_id = max(able, key=leases.tokens_per_s)
        overdue = copy_due(leases, lease) <= now
        collected = state.collected.get(key.unit_id)
        begun = collected[-1].step / state.manifest.config.expert.steps if collected else 0.0
        here, there = leases.tokens_per_s(node_id), leases.tokens_per_s(lease.node_id)
        ratio = there / here if here > 0 and there > 0 else 1.0
        copy_s = (1.0 - min(1.0, begun)) / lease.rate * ratio if lease.rate > 0 else math.inf
        left_s = remaining_s(lease, now)
        sooner = left_s > SOONER_FACTOR * copy_s + leases.lease_s
        if overdue or (sooner and key.kind is not UnitKind.SHARD):
            found.append((node_id, key))
    return found


def deadline(state: HardState, leases: Leases, now: float) -> float:
    """When time alone changes something at the latest; infinite if it does not."""
    times = [lease.until for lease in leases.by_node.values()]
    times += [waiting.until for waiting in leases.waiting.values()]
    if leases.waiting:
        free = [key for key in free_units(state, leases) if not handout.pinned(state, key)]
        times += [scheduling.kept_until(state, leases, key) for key in free]
        times += [copy_due(leases, lease) for _, lease in first_copies(state, leases)]
        times.append(leases.frozen_until)
    return min((time for time in times if time > now), default=math.inf)
