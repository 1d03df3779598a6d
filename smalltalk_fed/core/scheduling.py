"""Which open unit a free node gets, and why. Pure functions over hard and soft state.

Rules, in this order:
1. A node gets the unit whose input it already has: it did the round before, or its
   checkpoints are of this very unit.
2. Other open units go to free nodes, the largest to the fastest. A unit is kept for the node
   that has its input while that one is here and free; an expert whose node vanished is kept
   as long as redoing the lost work would take, at most `patience_s` (the ski-rental rule:
   never twice as long as the best that could have been done).
3. Units that a node failed at, once every node that is here has tried.
4. When nothing is open, the fastest free node takes a copy of a unit that has run much
   longer than usual, or that it would finish much sooner.
A unit that only its holder can do goes to nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smalltalk_fed.core import handout
from smalltalk_fed.core.catalogue import LONG
from smalltalk_fed.core.leases import Lease, Leases
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey, UnitKind

# How long a unit is kept for the node that has its input, after that node was last heard
# of without a lease: nodes ask again within milliseconds of finishing.
RESERVE_S = 5.0
STRAGGLER_FACTOR = 2.0  # times the usual duration
SOONER_FACTOR = 1.5  # what is left must be so many times what a copy would take


@dataclass(frozen=True)
class Match:
    """A unit for a node, and why."""

    node_id: str
    key: UnitKey
    reason: str


def matches(
    state: HardState, leases: Leases, free: Iterable[UnitKey], now: float
) -> Iterator[Match]:
    """Which waiting nodes get which units out of `free`, those that nobody holds."""
    nodes = dict.fromkeys(sorted(leases.waiting, key=leases.tokens_per_s, reverse=True))
    others: list[UnitKey] = []
    for key in free:
        if not nodes:
            return
        tried = _tried(leases, key)
        holder = handout.holder(state, key)
        if holder in nodes and (holder not in tried or handout.pinned(state, key)):
            del nodes[holder]
            yield Match(holder, key, "this node has its input at hand")
        elif key.kind is UnitKind.SHARD and not tried:
            node_id = next(iter(nodes))
            del nodes[node_id]
            yield Match(node_id, key, "it is open")
        elif not handout.pinned(state, key) and kept_until(state, leases, key) <= now:
            others.append(key)
    for key in sorted(others, key=lambda key: (-_size(state, key), key)):
        found = _first_fit(leases, key, nodes)
        if found is not None:
            del nodes[found.node_id]
            yield found


def kept_until(state: HardState, leases: Leases, key: UnitKey) -> float:
    """Until when an open unit is kept for the node that has its input; 0 if it is not."""
    holder = handout.holder(state, key)
    if holder is None or holder in leases.by_node or holder in _tried(leases, key):
        return 0.0
    if state.nodes[holder].revoked:
        return 0.0
    if holder in leases.waiting:
        return math.inf
    presence = leases.present.get(holder)
    kept = 0.0
    if presence is not None and not presence.gone:
        kept = presence.seen + RESERVE_S
    started = state.started.get(key.unit_id)
    if started is not None:
        heard = presence.seen if presence is not None else leases.began
        collected = state.collected.get(key.unit_id)
        safe = max(started.at, collected[-1].at if collected else 0.0)
        patience_s = state.manifest.config.run.patience_s
        kept = max(kept, heard + min(max(0.0, heard - safe), patience_s))
    return kept


def straggler(state: HardState, leases: Leases, now: float) -> tuple[Lease, Match] | None:
    """A lease whose unit the fastest waiting node may take a copy of, or None."""
    if not leases.waiting:
        return None
    node_id = max(leases.waiting, key=leases.tokens_per_s)
    for key, lease in _copyable(state, leases):
        due = copy_due(leases, lease)
        if due is not None and due <= now:
            reason = f"it has run for {now - lease.since:.0f} s, much longer than usual"
            return lease, Match(node_id, key, reason)
        if key.kind is UnitKind.SHARD:
            return None  # leases of slices are in the order of their age
        left_s, copy_s = remaining_s(lease, now), _copy_s(state, leases, lease, node_id)
        if left_s > SOONER_FACTOR * copy_s + leases.lease_s:
            reason = f"its node needs {left_s:.0f} s more, this one about {copy_s:.0f} s"
            return lease, Match(node_id, key, reason)
    return None


def copy_due(leases: Leases, lease: Lease) -> float | None:
    """When a free node may take a copy of this lease's unit; None while nothing is known."""
    typical_s = leases.typical_s(lease.key.kind)
    if typical_s is None:
        return None
    return lease.since + max(STRAGGLER_FACTOR * typical_s, leases.lease_s)


def remaining_s(lease: Lease, now: float) -> float:
    """Seconds that the holder still needs by its own progress; 0 while it is not known."""
    if lease.rate <= 0:
        return 0.0
    return max(0.0, (1.0 - lease.fraction) / lease.rate - (now - lease.last_said))


def deadline(state: HardState, leases: Leases, free: Iterable[UnitKey], now: float) -> float | None:
    """When time alone changes something: a lease or question ends, a unit is kept no more."""
    times = [] if (due := leases.deadline()) is None else [due]
    if leases.waiting:
        later: list[float | None] = [leases.frozen_until]
        for key in free:
            if key.kind is UnitKind.SHARD:
                break  # kept for nobody
            later.append(kept_until(state, leases, key))
        for key, lease in _copyable(state, leases):
            later.append(copy_due(leases, lease))
            if key.kind is UnitKind.SHARD:
                break
        times += [time for time in later if time is not None and now < time < math.inf]
    return min(times, default=None)


def _copyable(state: HardState, leases: Leases) -> Iterator[tuple[UnitKey, Lease]]:
    copies = state.manifest.config.run.spare_copies
    for key, held in leases.by_unit.items():
        if len(held) <= copies and not handout.pinned(state, key):
            yield key, held[0]


def _copy_s(state: HardState, leases: Leases, lease: Lease, node_id: str) -> float:
    """Seconds that `node_id` would need for the lease's unit from what is collected of it."""
    collected = state.collected.get(lease.key.unit_id)
    steps = state.manifest.config.expert.steps
    begun = min(1.0, collected[-1].step / steps) if collected else 0.0
    here, there = leases.tokens_per_s(node_id), leases.tokens_per_s(lease.node_id)
    ratio = there / here if here > 0 and there > 0 else 1.0
    return (1.0 - begun) / lease.rate * ratio if lease.rate > 0 else math.inf


def _first_fit(leases: Leases, key: UnitKey, nodes: Iterable[str]) -> Match | None:
    tried, first = _tried(leases, key), None
    for node_id in nodes:
        if node_id not in tried:
            return Match(node_id, key, "it is open")
        first = first or node_id
    present = (other for other in leases.present.values() if not other.gone)
    if first and all(other.node_id in tried for other in present):
        return Match(first, key, "every node that is here has tried it")
    return None


def _tried(leases: Leases, key: UnitKey) -> set[str]:
    return {node for node, _ in leases.failures.get(key, ())}


def _size(state: HardState, key: UnitKey) -> float:
    """How much work an expert is, next to the others."""
    if key.kind not in LONG or state.segments is None:
        return 0.0
    return state.segments.figures.get(f"load_{key.expert}", 0.0)
