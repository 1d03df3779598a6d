"""Public text in a private run: any silo divides a slice by all routers that are left."""

from __future__ import annotations

import pytest
from support.core_world import World, blob
from support.silo_world import (
    accepted,
    private_manifest,
    three_silos,
    withdraw,
    work,
)

from smalltalk_fed.core import handout, silos
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Result
from smalltalk_fed.errors import Refused


def test_public_text_is_divided_by_all_routers_before_the_experts_train() -> None:
    world = World(private_manifest(public_sequences=25))
    nodes = three_silos(world)
    work(world, nodes, "sharding")
    shards = [f"shard/{index}" for index in range(3)]  # of ten sequences; none of held-out text
    assert [key.unit_id for key in world.coordinator.state.open] == shards
    with pytest.raises(Refused, match="not part of the run's present phase"):
        nodes[0].poll(finished=Result("shard/heldout", (blob("experts", "x"),)))
    work(world, nodes, "training")
    assert isinstance(world.asked_for[-1], jmsg.SegmentsJob)
    nodes[2].poll()
    assert nodes[2].unit
    names = [ref.name for ref in nodes[2].unit.inputs]
    assert names == ["router-2", "router-3", "segment"]
    work(world, nodes, "finished")


def test_any_silo_divides_a_slice_of_public_text() -> None:
    world = World(private_manifest(public_sequences=25))
    nodes = three_silos(world)
    work(world, nodes, "sharding")
    for node in nodes:
        node.look() or node.poll()
    given = [node.unit for node in nodes if node.unit]
    assert {unit.unit_id for unit in given} == {f"shard/{index}" for index in range(3)}
    for unit in given:
        assert [ref.name for ref in unit.inputs] == [f"router-{e}" for e in range(4)]
    left = nodes[0].unit
    world.ask(msg.Leave(nodes[0].node_id, nodes[0].incarnation))
    nodes[1].done()  # and gets the one that is free again
    assert nodes[1].unit == left


def test_lost_segments_of_public_text_are_made_again() -> None:
    world = World(private_manifest(public_sequences=25))
    nodes = three_silos(world)
    work(world, nodes, "training")
    segments = world.coordinator.state.segments
    assert segments
    lost = segments.segments[0].digest
    world._settle(world.coordinator.blob_damaged(lost, "damaged", world.now))
    assert isinstance(world.asked_for[-1], jmsg.SegmentsJob)
    assert world.coordinator.state.segments
    work(world, nodes, "finished")


def test_public_text_is_divided_among_who_is_left() -> None:
    world = World(private_manifest(public_sequences=25))
    a, b, c = nodes = three_silos(world)
    work(world, nodes, "sharding")
    a.look() or a.poll()
    begun = a.unit
    withdraw(world, b)
    assert begun is not None
    assert begun in silos.earlier_forms(world.coordinator.state, begun.key)
    a.done()  # counts as it is
    assert begun.unit_id in accepted(world)
    c.look() or c.poll()
    assert c.unit is not None
    left = [key for key in world.coordinator.state.open if key != c.unit.key]
    given = handout.unit(world.coordinator.state, left[0])
    assert [ref.name for ref in given.inputs] == ["router-0", "router-2", "router-3"]
    work(world, [a, c], "finished", turns=1000)  # b has a slice till its lease ends
