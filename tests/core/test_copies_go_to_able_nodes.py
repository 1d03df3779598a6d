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
