"""Runs in which nodes look at each other's results; a crowd of nodes, and steps to drive them."""

from __future__ import annotations

import contextlib
from typing import Any

from support.core_world import FakeNode, World, honest, make_manifest

from smalltalk_fed.core.events import AuditOpened, AuditSettled, Event, NodeQuarantined
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import UnitKind
from smalltalk_fed.errors import PeerError

NEVER_BY_CHANCE = 1e-9  # audits are on, and none is drawn


def audited(names: str = "abcd", **changes: Any) -> tuple[World, list[FakeNode]]:
    """A run with audits, for which no round is trained again; everybody has joined."""
    audit = {"rate": NEVER_BY_CHANCE, "wait_s": 60.0, "redo_share": 0.0} | changes.pop("audit", {})
    world = World(make_manifest(audit=audit, **changes))
    return world, [FakeNode(world, name).enrol().join() for name in names]


def turn(nodes: list[FakeNode], *, but: str = "") -> None:
    """Everybody asks, and hands in what it has; units of `but` (their ids begin so) stay."""
    for node in nodes:
        if node.stopped:
            continue
        node.look()
        with contextlib.suppress(PeerError):
            if node.unit is None:
                if node.question == 0 or node.question in node.world.answers:
                    node.poll()
            elif not but or not node.unit.unit_id.startswith(but):
                node.done()
        order = node.look()
        if order and node.unit and order.cancel == node.unit.unit_id:
            node.unit = order.unit


def drive(world: World, nodes: list[FakeNode], limit: int = 120) -> None:
    """Everybody works until the run ends."""
    for _ in range(limit):
        if world.coordinator.state.phase in (Phase.FINISHED, Phase.FAILED):
            return
        turn(nodes)
        world.advance(1.0)
    state = world.coordinator.state
    raise AssertionError(f"stuck in {state.phase} with {[key.unit_id for key in state.open]}")


def auditor_of(nodes: list[FakeNode], unit_id: str) -> FakeNode:
    """Who is at an opinion on this result."""
    for node in nodes:
        node.look()
        unit = node.unit
        if unit and unit.key.kind is UnitKind.AUDIT and unit.key.target == unit_id:
            return node
    raise AssertionError(f"nobody looks at {unit_id}")


def events_of(world: World, kind: type[Event]) -> list[Any]:
    """The journal's events of one kind."""
    return [event for event in world.journal if isinstance(event, kind)]


def opened(world: World) -> list[AuditOpened]:
    """Every opinion that was asked for."""
    return events_of(world, AuditOpened)


def verdicts(world: World) -> dict[str, str]:
    """Result -> what was found of it last."""
    return {event.unit_id: event.verdict for event in events_of(world, AuditSettled)}


def quarantined(world: World) -> list[NodeQuarantined]:
    """Who was put out."""
    return events_of(world, NodeQuarantined)


def all_honest(world: World) -> bool:
    """Whether what counts in the end is what it should be."""
    return all(
        accepted.outputs == honest(world.manifest, unit_id)
        for unit_id, accepted in world.coordinator.state.finished.items()
        if not unit_id.startswith("audit")
    )


def reach(world: World, nodes: list[FakeNode], phase: Phase) -> None:
    """Let the nodes work until the run is in a phase."""
    for _ in range(80):
        if world.coordinator.state.phase is phase:
            return
        turn(nodes)
        world.advance(1.0)
    raise AssertionError(f"{phase} was not reached")
