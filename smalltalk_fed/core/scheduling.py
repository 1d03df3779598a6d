"""Which open unit a free node gets, and why. Pure functions over hard and soft state.

Rules, in this order:
0. Audits, which all others wait for and which are short, go to the fastest node that may do
   them: not to whose work it is, nor to who gave an opinion on it before or failed at it.
1. A node gets the unit whose input it already has: it did the round before, or its
   checkpoints are of this very unit.
2. Other open units go to free nodes, the largest to the fastest. A unit is kept for the node
   that has its input while that one is here and free; an expert whose node vanished is kept
   as long as redoing the lost work would take, at most `patience_s` (the ski-rental rule:
   never twice as long as the best that could have been done).
3. Units that a node failed at, once every node that is here has tried.
4. When nothing is open, a free node may take a copy (`copies.py`).
A unit that only its holder can do goes to nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smalltalk_fed.core import handout
from smalltalk_fed.core.catalogue import LONG
from smalltalk_fed.core.leases import Leases
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey, UnitKind

# How long a unit is kept for the node that has its input, after that node was last heard
# of without a lease: nodes ask again within milliseconds of finishing.
RESERVE_S = 5.0


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
    nodes = dict.fromkeys(leases.fastest_first())
    others: list[UnitKey] = []
    busy: set[str] = set()
    for key in free:
        if not nodes:
            return
        if key.kind is UnitKind.AUDIT:
            able = may_audit(state, leases, key, nodes)
            if able is not None:
                del nodes[able]
                yield Match(able, key, "it is another node's work, to be looked at")
            continue
        tried = _tried(leases, key)
        holder = handout.holder(state, key)
        if holder in nodes and (holder not in tried or handout.pinned(state, key)):
            del nodes[holder]
            busy.add(holder)
            yield Match(holder, key, "this node has its input at hand")
        elif key.kind is UnitKind.SHARD and not tried:
            node_id = next(iter(nodes))
            del nodes[node_id]
            yield Match(node_id, key, "it is open")
        elif not handout.pinned(state, key) and (
            holder in busy or kept_until(state, leases, key) <= now
        ):
            others.append(key)
    for key in sorted(others, key=lambda key: (-_size(state, key), key)):
        found = _first_fit(leases, key, nodes)
        if found is not None:
            del nodes[found.node_id]
            yield found


def barred(state: HardState, key: UnitKey) -> set[str]:
    """Nodes that may not give this opinion: whose work it is, and who gave one before."""
    audit = state.audits[key.target]
    return {audit.node_id, *audit.opinions.values(), *audit.wrong.values()}


def may_audit(state: HardState, leases: Leases, key: UnitKey, nodes: Iterable[str]) -> str | None:
    """The first of `nodes` that may give this opinion, or None."""
    out = barred(state, key) | _tried(leases, key)
    return next((node for node in nodes if node not in out), None)


def kept_until(state: HardState, leases: Leases, key: UnitKey) -> float:
    """Until when an open unit is kept for the node that has its input; 0 if it is not."""
    holder = handout.holder(state, key)
    if holder is None or holder in leases.by_node or holder in _tried(leases, key):
        return 0.0
    if not state.nodes[holder].takes_part:
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
