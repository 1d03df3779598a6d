"""Copies of stragglers' units go to nodes that can do them."""

from __future__ import annotations

from collections.abc import Callable

from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.reports import MAX_FAILURES

Nodes = Callable[[str], FakeNode]


def test_a_node_that_failed_at_a_unit_is_given_no_copy_of_it() -> None:
    """An idle node that is short of memory must not fail the run while another works."""
    world = World(make_manifest(experts=1, rounds=1))
    poor, able = (FakeNode(world, name).enrol().join() for name in ("poor", "able"))
    poor.poll()
    assert poor.unit
    poor.poll(failed=msg.Failure(poor.unit.unit_id, "out of memory"))
    able.poll()
    assert able.unit
    world.coordinator.leases._typical_s[able.unit.key.kind] = 1.0  # units take a second
    poor.unit = None
    for _ in range(10 * MAX_FAILURES):
        able.beat()
        world.advance(4.0)
        if poor.question in world.answers:
            poor.poll()
        assert poor.look() is None or not poor.unit
    assert world.coordinator.state.phase is Phase.ROUTING


def waiting_beside_a_straggler(**run: object) -> tuple[World, FakeNode, FakeNode]:
    """A node at work on a unit that will soon have lasted too long, and an idle one."""
    world = World(make_manifest(experts=1, rounds=1, lease_s=100.0, poll_s=200.0, **run))
    busy, idle = (FakeNode(world, name).enrol().join() for name in ("busy", "idle"))
    busy.poll()
    assert busy.unit
    idle.poll()
    world.coordinator.leases._typical_s[busy.unit.key.kind] = 1.0  # units take a second
    return world, busy, idle


def test_a_paused_run_gives_out_no_copies() -> None:
    world, busy, idle = waiting_beside_a_straggler()
    world.advance(60.0)
    busy.beat()
    world.ask(msg.Pause())
    world.advance(60.0)
    assert not idle.unit and not idle.look()
    world.ask(msg.Resume())
    idle.look()
    assert idle.unit == busy.unit


def test_a_unit_whose_share_was_lost_is_given_to_nobody() -> None:
    world, busy, idle = waiting_beside_a_straggler()
    world.do_jobs = False
    world.advance(60.0)
    busy.beat()
    share = world.coordinator.state.rounds[1].shares[0]
    world._settle(world.coordinator.blob_damaged(share.digest, "it is damaged", world.now))
    world.advance(60.0)
    assert not idle.unit and not idle.look()
    world.finish_job()  # the same division, computed again
    idle.look()
    assert idle.unit == busy.unit
