"""Who may have a silo's weights and counts: the narrower word of run and owner, also changed."""

from __future__ import annotations

import pytest
from support.core_world import World, blob
from support.silo_world import private_manifest, silo, three_silos, work, work_until

from smalltalk_fed.core import handout, silos
from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.core.silo_events import SeatTaken
from smalltalk_fed.core.units import Result, UnitKey


@pytest.fixture
def world() -> World:
    return World(private_manifest())


@pytest.mark.parametrize(
    ("asked", "said", "brought"),
    [
        ("public", "never", False),
        ("never", "public", False),
        ("operator", "public", True),
        ("public", "operator", True),
    ],
)
def test_weights_come_only_where_run_and_owner_agree(asked: str, said: str, brought: bool) -> None:
    world = World(private_manifest(expert={"share": asked}))
    nodes = three_silos(world, share=said)
    work(world, nodes, "finished")
    accepted = [e for e in world.journal if isinstance(e, UnitAccepted)]
    experts = [bool(e.outputs) for e in accepted if e.unit_id.startswith("train_expert")]
    assert experts == [brought] * 4


def test_weights_that_the_owner_keeps_are_refused(world: World) -> None:
    nodes = three_silos(world)
    work(world, nodes, "training")
    a = nodes[0]
    a.poll()
    assert a.unit
    outputs = (blob("config", "x"), blob("weights", "x"))
    with pytest.raises(Exception, match="must bring these outputs: none"):
        a.poll(finished=Result(a.unit.unit_id, outputs))


def test_an_owner_may_change_its_word(world: World) -> None:
    node = silo(world, "a").join()
    node.share, node.incarnation = "operator", 2
    node.join()
    said = [(e.seat, e.share) for e in world.journal if isinstance(e, SeatTaken)]
    assert said == [(0, "never"), (0, "operator")]


def test_only_public_experts_go_to_other_silos(world: World) -> None:
    shares = {"a": "public", "b": "operator", "c": "never"}
    nodes = [silo(world, name, share=share).join() for name, share in shares.items()]
    work_until(world, nodes, "evaluate_silo/2")
    unit = nodes[2].unit
    assert unit is not None
    names = [ref.name for ref in unit.inputs if not ref.name.startswith("router-")]
    assert names == ["weights-0"]


def test_an_owner_that_keeps_an_expert_after_all_is_obeyed_from_then_on(world: World) -> None:
    a, b, _ = nodes = three_silos(world, share="public")
    work_until(world, nodes, "evaluate_silo/1")
    assert b.unit and b.unit.input("weights-0")
    a.share, a.incarnation, a.unit, a.question = "never", 2, None, 0
    a.join()
    given = handout.unit(world.coordinator.state, UnitKey.parse("evaluate_silo/1"))
    assert given.input("weights-0") is None
    assert given.input("weights-2")


def test_what_is_not_public_is_for_its_own_node_alone(world: World) -> None:
    shares = {"a": "public", "b": "operator", "c": "never"}
    nodes = [silo(world, name, share=share).join() for name, share in shares.items()]
    work(world, nodes, "finished")
    state = world.coordinator.state

    def readers(unit_id: str) -> list[str]:
        refs = state.finished[unit_id].outputs
        every = [
            node.name
            for node in nodes
            if all(silos.may_read(state, node.node_id, ref.digest) for ref in refs)
        ]
        assert refs
        return every

    assert readers("train_expert/0") == ["a", "b", "c"]
    assert readers("train_expert/1") == ["b"]
    assert readers("count/1/2/2") == ["b"]
    assert readers("silo_block/1/2") == ["a", "b", "c"]
