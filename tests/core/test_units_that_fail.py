"""Units that fail, and results and jobs that can't be used: tried again, then the run pauses."""

from __future__ import annotations

import re
from collections.abc import Callable

from support.audit_world import drive
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.reports import MAX_FAILURES
from smalltalk_fed.core.units import UnitKey

Nodes = Callable[[str], FakeNode]


def test_a_unit_that_fails_everywhere_pauses_the_run_with_its_reason(
    world: World, node: Nodes
) -> None:
    a = node("a")
    a.poll()
    for _ in range(2 * MAX_FAILURES - 1):  # two open units, tried in turn
        assert a.unit
        a.poll(failed=msg.Failure(a.unit.unit_id, "out of memory"))
    state = world.coordinator.state
    assert state.phase is Phase.PAUSED
    assert re.search(
        "failed 6 times, .*: out of memory; .* `smalltalk-coordinator resume`", state.reason
    )
    assert a.look() is None
    assert not a.stopped


def test_a_run_that_failures_paused_counts_them_anew_when_it_is_resumed() -> None:
    world = World(make_manifest(experts=1))
    a = FakeNode(world, "a").enrol().join()
    a.poll()
    for _ in range(2):
        for _ in range(MAX_FAILURES):
            assert world.coordinator.state.phase is Phase.ROUTING
            assert a.unit
            a.poll(failed=msg.Failure(a.unit.unit_id, "out of memory"))
        assert world.coordinator.state.phase is Phase.PAUSED
        world.ask(msg.Resume())
        a.look()
    drive(world, [a])
    assert world.coordinator.state.phase is Phase.FINISHED


def test_one_node_alone_can_not_pause_the_run_while_another_is_here(
    world: World, node: Nodes
) -> None:
    a, b = node("a"), node("b")
    a.poll()
    assert a.unit
    for _ in range(2 * MAX_FAILURES):
        a.poll(failed=msg.Failure("router_round/0/1", "I say so"))
    assert world.coordinator.state.phase is Phase.ROUTING
    b.poll()
    assert b.unit and b.unit.unit_id == "router_round/0/1"
    b.done()
    assert world.coordinator.state.is_finished(UnitKey.parse("router_round/0/1"))


def test_a_failure_of_another_phase_is_heard_and_changes_nothing(world: World, node: Nodes) -> None:
    a = node("a")
    order = a.poll(failed=msg.Failure("train_expert/0", "result refused"))
    assert order and order.unit and order.unit.unit_id == "router_round/0/1"
    assert not world.coordinator.leases.failures


def test_a_node_that_failed_is_not_tried_while_another_is_here(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    unit = a.unit
    assert unit
    a.poll(failed=msg.Failure(unit.unit_id, "no"))
    assert a.look() and a.unit.unit_id == "router_round/1/1"  # type: ignore[union-attr]
    b.poll()
    assert b.unit == unit


def test_a_bad_score_block_opens_its_unit_again_for_another_node(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    world.do_jobs = False
    a.done()
    b.done()
    world.fail_job("score block refused: NaN", "router_round/0/1")  # it was a's
    assert b.look() and b.unit and b.unit.unit_id == "router_round/0/1"
    assert not a.look()


def test_a_job_that_can_not_be_done_pauses_the_run_until_it_can(world: World, node: Nodes) -> None:
    world.do_jobs = False
    a = node("a")
    world.fail_job("no such policy", "")
    assert world.coordinator.state.phase is Phase.PAUSED
    assert "assign/1: no such policy; " in world.coordinator.state.reason
    world.do_jobs = True
    world.ask(msg.Resume())
    drive(world, [a])
    assert world.coordinator.state.phase is Phase.FINISHED
