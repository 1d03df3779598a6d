"""A node's key that is used from two places: reported, and what is no such thing is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.core_world import CORPUS, FakeNode, World

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.doubles import LATE_MESSAGES, TOLD_EVERY_S
from smalltalk_fed.errors import Forbidden, Refused
from smalltalk_fed.host.status import run_status

Nodes = Callable[[str], FakeNode]


def again(node: FakeNode, incarnation: int) -> FakeNode:
    """A process of the same node that was started later."""
    return FakeNode(node.world, node.name, incarnation=incarnation, node_id=node.node_id)


def two_places(world: World) -> float | None:
    (node,) = run_status(world.coordinator, world.now)["nodes"]
    found: float | None = node["two_places"]
    return found


def reports(world: World) -> list[str]:
    for decision in world.coordinator.noticed().decisions:
        world.decisions.append(f"{decision.what}: {decision.reason}")
    return [said for said in world.decisions if "in two places" in said]


def test_an_older_process_that_presents_itself_after_a_newer_one_is_reported(
    world: World, node: Nodes
) -> None:
    older = node("a")
    again(older, 2).join()
    events = list(world.journal)
    with pytest.raises(Refused, match="key was copied"):
        older.join()
    assert two_places(world) == world.now
    assert len(reports(world)) == 1
    assert world.journal == events


def test_an_older_process_that_goes_on_asking_is_reported(world: World, node: Nodes) -> None:
    older = node("a")
    again(older, 2).join()
    for _ in range(LATE_MESSAGES + 1):
        assert two_places(world) is None
        with pytest.raises(Refused, match="newer process"):
            older.poll()
    assert two_places(world) == world.now


def test_two_that_are_started_by_turns_are_reported(world: World, node: Nodes) -> None:
    """As a service manager does it, that starts whoever was refused anew."""
    first = node("a")
    second = again(first, 2).join()
    third = again(first, 3).join()
    third.poll()
    with pytest.raises(Refused):
        second.poll()
    with pytest.raises(Refused):
        second.join()
    assert len(reports(world)) == 1


def test_what_a_process_that_has_ended_said_last_is_no_second_place(
    world: World, node: Nodes
) -> None:
    older = node("a")
    older.poll()
    newer = again(older, 2).join()
    for late in (lambda: older.beat(), lambda: world.ask(msg.Leave(older.node_id, 1))):
        with pytest.raises(Refused, match="newer process"):
            late()
    newer.poll()
    newer = again(older, 3).join()
    with pytest.raises(Refused):
        world.ask(msg.Leave(older.node_id, 2))
    newer.poll()
    assert two_places(world) is None
    assert reports(world) == []


def test_it_is_said_once_in_a_while_and_seen_all_the_time(world: World, node: Nodes) -> None:
    older = node("a")
    again(older, 2).join()
    for seconds in (0.0, 10.0, TOLD_EVERY_S):
        world.advance(seconds)
        with pytest.raises(Refused):
            older.join()
        assert two_places(world) == world.now
    assert len(reports(world)) == 2


def test_a_warning_is_one_and_other_decisions_are_none(world: World, node: Nodes) -> None:
    older = node("a")
    again(older, 2).join()
    with pytest.raises(Refused):
        older.join()
    assert [d.warning for d in world.coordinator.noticed().decisions] == [True]
    assert world.coordinator.noticed().decisions == []


def test_a_restarted_coordinator_notices_it_again(world: World, node: Nodes) -> None:
    older = node("a")
    newer = again(older, 2).join()
    world.restart()
    newer.join()
    with pytest.raises(Refused):
        older.join()
    assert two_places(world) == world.now


def test_a_node_that_is_shut_out_is_forgotten_and_told_the_reason_of_that(
    world: World, node: Nodes
) -> None:
    older = node("a")
    again(older, 2).join()
    with pytest.raises(Refused):
        older.join()
    world.ask(msg.Revoke(older.node_id, "copied"))
    assert two_places(world) is None
    with pytest.raises(Forbidden, match="copied"):
        older.join()


def test_a_process_with_another_signing_key_is_refused_and_reported(
    world: World, node: Nodes
) -> None:
    """Such as a copy of a folder from before its first run, or half of a stolen one."""
    a = node("a")
    events = list(world.journal)
    join = msg.Join(a.node_id, 2, 1, b"k" * 32, msg.Capabilities(corpus_digest=CORPUS))
    with pytest.raises(Refused, match="registered with another signing key"):
        world.ask(join)
    assert two_places(world) == world.now
    assert len(reports(world)) == 1
    assert world.journal == events
    a.poll()  # the one that was there first goes on
    assert a.unit
