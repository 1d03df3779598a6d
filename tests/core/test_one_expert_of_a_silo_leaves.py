"""One of a silo's experts leaves a private run: what becomes of its text, routers and counts."""

from __future__ import annotations

import pytest
from support.core_world import World
from support.silo_world import (
    accepted,
    private_manifest,
    three_silos,
    withdraw,
    work,
    work_until,
)

from smalltalk_fed.core import silos
from smalltalk_fed.core.handout import unit
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.silo_events import ExpertWithdrawn
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.errors import Refused


@pytest.fixture
def world() -> World:
    return World(private_manifest())


def test_a_block_is_begun_again_when_one_of_its_experts_leaves(world: World) -> None:
    _a, _b, c = nodes = three_silos(world)
    work_until(world, nodes, "silo_block/2/1")
    with_both = c.result()
    withdraw(world, c, 3)
    beat = c.beat()
    assert beat is not None
    assert beat.cancel == "silo_block/2/1"
    with pytest.raises(Refused, match=r"router-3, of an expert that was withdrawn meanwhile"):
        c.poll(finished=with_both)
    c.unit = None
    c.poll()
    assert c.unit is not None
    assert (c.unit.unit_id, c.unit.withdrawn) == ("silo_block/2/1", (3,))
    assert [ref.name for ref in c.result().outputs] == ["router-2"]
    work_until(world, nodes, "silo_block/2/2")
    assert c.unit is not None
    assert [ref.name for ref in c.unit.inputs] == ["router-2"]
    work_until(world, nodes, "train_expert/2")
    # All of its text is the other's.
    assert [ref.name for ref in c.unit.inputs] == ["router-2"]
    assert c.unit.weights[2] == pytest.approx(1 / 3)
    work(world, nodes, "finished")
    assert "train_expert/3" not in accepted(world)


def test_a_block_that_counted_may_be_said_again_after_one_of_its_experts_left(
    world: World,
) -> None:
    _a, _b, c = nodes = three_silos(world)
    work_until(world, nodes, "silo_block/2/1")
    with_both = c.result()
    c.done()
    withdraw(world, c, 3)
    order = c.poll(finished=with_both, wants_work=False)
    assert order is not None
    assert order.accepted == "silo_block/2/1"


def test_text_that_was_divided_stays_divided(world: World) -> None:
    a, _b, c = nodes = three_silos(world)
    work_until(world, nodes, "train_expert/2")
    before = c.unit
    router = silos.router(world.coordinator.state, 3, 2)
    withdraw(world, c, 3)
    assert unit(world.coordinator.state, UnitKey.parse("train_expert/2")) == before
    assert router.digest in needed_blobs(world.coordinator.state)
    assert silos.may_read(world.coordinator.state, c.node_id, router.digest)
    assert not silos.may_read(world.coordinator.state, a.node_id, router.digest)
    c.done()  # nobody else was divided from it
    assert router.digest not in needed_blobs(world.coordinator.state)
    work(world, nodes, "evaluating")
    assert router.digest in world.released
    assert router.digest not in needed_blobs(world.coordinator.state)
    work(world, nodes, "finished")


def test_when_the_last_of_a_silos_experts_leaves_its_counts_go_too(world: World) -> None:
    a, b, c = nodes = three_silos(world)
    work_until(world, nodes, "silo_block/2/2")
    count = world.coordinator.state.finished["count/2/1/0"].outputs[0]
    withdraw(world, c, 2)
    assert count.digest in needed_blobs(world.coordinator.state)
    withdraw(world, c)
    assert sorted(world.coordinator.state.withdrawn) == [2, 3]
    assert count.digest in world.released
    work(world, [a, b], "finished")


def test_two_that_leave_together_take_the_silos_counts_along(world: World) -> None:
    _, _, c = nodes = three_silos(world)
    work_until(world, nodes, "silo_block/2/2")
    count = world.coordinator.state.finished["count/2/1/0"].outputs[0]
    withdraw(world, c)
    gone = [event for event in world.journal if isinstance(event, ExpertWithdrawn)]
    assert [count.digest in event.blobs for event in gone] == [True, True]
