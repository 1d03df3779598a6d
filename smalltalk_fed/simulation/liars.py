"""Machines whose owners lie: how many, in which way, since when; drawn from the seed.

A lie is another digest than an honest node's, and the world knows what kind it is; the core
sees digests only. Kinds:
    odd      wrong results whose score blocks look odd beside the others
    hidden   wrong results that only an audit tells from good ones
    accuse   good results, and opinions that call others' good work bad
    approve  hidden lies, and opinions that call everything good
    mixed    any of these
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from smalltalk_fed.core.units import AUDITED, Unit, UnitKind
from smalltalk_fed.simulation.world import World

LieKind = Literal["odd", "hidden", "accuse", "approve", "mixed"]
KINDS: tuple[LieKind, ...] = get_args(LieKind)


@dataclass(frozen=True)
class Liars:
    """`share` of the machines, or exactly `count`, lie; after `honest_units` units each."""

    share: float = 0.0
    kind: LieKind = "mixed"
    honest_units: int = 0
    count: int | None = None


def draw_lies(world: World, liars: Liars, nodes: int) -> list[str]:
    """By machine the kind of lie that it tells; empty: none."""
    count = liars.count if liars.count is not None else round(liars.share * nodes)
    order = list(range(nodes))
    world.stream("liars").shuffle(order)
    told = [""] * nodes
    for place, number in enumerate(order[:count]):
        told[number] = KINDS[place % (len(KINDS) - 1)] if liars.kind == "mixed" else liars.kind
    return told


def lie_in(kind: str, unit: Unit, done: int, liars: Liars) -> str:
    """What kind of lie the result of `unit` is; `done`: units that the machine did before."""
    if not kind or done < liars.honest_units:
        return ""
    if unit.key.kind is UnitKind.AUDIT:
        return kind if kind in ("accuse", "approve") else ""
    if kind == "accuse" or unit.key.kind not in AUDITED:
        return ""
    return "odd" if kind == "odd" and unit.key.kind is UnitKind.ROUTER_ROUND else "hidden"
