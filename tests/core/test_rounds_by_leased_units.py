"""A run is driven by work units that nodes pull and lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.core.handout import unit
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.scheduling import RESERVE_S
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.errors import Malformed, Refused

Nodes = Callable[[str], FakeNode]


def drive(world: World, nodes: list[FakeNode], limit: int = 200) -> list[str]:
    """Every node does whatever it gets until the run stops it; returns the units in order."""
    done = []
    for node in nodes:
        node.poll()
    for _ in range(limit):
        for node in nodes:
            if node.stopped:
                continue
            node.look()
            if node.unit:
                done.append(node.unit.unit_id)
                node.done()
        if all(node.stopped for node in nodes):
            return done
    raise AssertionError(f"the run did not end: {world.coordinator.state.phase}")


ALL_UNITS = {
    *(f"router_round/{e}/{r}" for e in (0, 1) for r in (1, 2)),
    "shard/0", "shard/1", "shard/heldout",
    "train_expert/0", "train_expert/1", "evaluate/0", "evaluate/1",
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_or_more_nodes_than_experts_do_every_unit_once(count: int) -> None:
    world = World(make_manifest())
    nodes = [FakeNode(world, f"node{i}").enrol().join() for i in range(count)]
    assert sorted(drive(world, nodes)) == sorted(ALL_UNITS)
    assert world.coordinator.state.phase is Phase.FINISHED


def test_the_run_waits_for_the_nodes_that_it_was_told_to_wait_for() -> None:
    world = World(make_manifest(nodes_to_start=2))
    first = FakeNode(world, "first").enrol().join()
    assert first.poll() is None
    assert world.coordinator.state.phase is Phase.RECRUITING
    FakeNode(world, "second").enrol().join()
    assert world.coordinator.state.phase is Phase.ROUTING
    order = first.look()
    assert order and order.unit and order.unit.unit_id == "router_round/0/1"


def test_a_router_stays_with_the_node_that_has_its_parameters(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    held = {a.unit.key.expert: a, b.unit.key.expert: b}  # type: ignore[union-attr]
    a.done()
    b.done()
    a.look()
    for expert, owner in held.items():
        assert owner.unit and owner.unit.unit_id == f"router_round/{expert}/2"


def test_a_unit_is_kept_for_its_holder_for_a_moment_and_then_given_away(
    world: World, node: Nodes
) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    b.done()
    a.poll(finished=a.result(), wants_work=False)  # and says nothing more
    b.look()
    b.done()
    assert b.unit is None  # router 0 waits for a, who has its parameters
    world.advance(RESERVE_S - 0.1)
    assert b.look() is None
    world.advance(0.2)
    assert b.look()
    assert b.unit
    assert b.unit.unit_id == "router_round/0/2"


def test_of_two_units_whose_inputs_one_node_has_the_second_goes_to_the_other_at_once(
    world: World, node: Nodes
) -> None:
    a, b = node("a"), node("b")
    a.poll()
    a.done()  # both routers' first round is a's
    b.poll()
    a.done()
    assert a.look() and a.unit and a.unit.unit_id == "router_round/0/2"
    assert b.look() and b.unit and b.unit.unit_id == "router_round/1/2"


def test_a_node_can_not_claim_a_unit_that_has_all_its_copies(world: World, node: Nodes) -> None:
    a, b, c = node("a"), node("b"), node("c")
    a.poll()
    b.unit = c.unit = a.unit
    b.beat()  # says that it is at a's unit too, as after a restart: one copy is allowed
    order = c.beat()
    assert order
    assert order.cancel == "router_round/0/1"
    assert len(world.coordinator.leases.by_unit[a.unit.key]) == 2  # type: ignore[union-attr]


def test_a_round_begins_only_when_all_of_the_last_are_in(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    assert a.done() is None  # held: router 1 is still at round 1
    assert world.coordinator.state.round == 1
    b.done()
    assert world.coordinator.state.round == 2
    assert a.look() is not None


def test_a_silent_node_is_replaced_when_its_lease_runs_out(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    lost = a.unit
    b.poll()
    b.done()
    world.advance(19.0)
    b.poll()
    assert b.unit is None
    world.advance(2.0)
    b.look()
    assert b.unit == lost
    assert any("nothing heard for 20 s" in decision for decision in world.decisions)


def test_heartbeats_keep_a_lease(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    for _ in range(10):
        world.advance(10.0)
        a.beat()
        b.beat()
    assert world.coordinator.leases.by_node.keys() == {a.node_id, b.node_id}


def test_a_late_result_counts_if_nobody_was_faster(world: World, node: Nodes) -> None:
    a = node("a")
    a.poll()
    world.advance(100.0)
    assert not world.coordinator.leases.by_node
    order = a.done()
    assert order and order.accepted == "router_round/0/1"


def test_a_unit_that_is_finished_late_is_given_to_nobody_else(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    world.advance(25.0)  # its lease is over
    a.poll(finished=a.result(), wants_work=False)
    b.poll()
    assert b.unit and b.unit.unit_id == "router_round/1/1"


def test_a_revoked_node_does_not_count_as_one_that_joined() -> None:
    world = World(make_manifest(nodes_to_start=2))
    first = FakeNode(world, "first").enrol().join()
    world.ask(msg.Revoke(first.node_id))
    FakeNode(world, "second").enrol().join()
    assert world.coordinator.state.phase is Phase.RECRUITING
    FakeNode(world, "third").enrol().join()
    assert world.coordinator.state.phase is Phase.ROUTING


def test_a_result_said_again_is_accepted_again(world: World, node: Nodes) -> None:
    a = node("a")
    a.poll()
    result = a.result()
    for _ in range(2):
        order = a.poll(finished=result)
        assert order and order.accepted == "router_round/0/1"
    accepted = [e for e in world.journal if isinstance(e, UnitAccepted)]
    assert len(accepted) == 1


def test_leave_gives_the_unit_back_at_once(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    lost = a.unit
    b.poll()
    b.done()
    assert b.unit is None
    left = world.answer(msg.Leave(a.node_id, a.incarnation, "Ctrl-C"))
    assert left.released == (lost.unit_id,)  # type: ignore[union-attr]
    b.look()
    assert b.unit == lost


def test_a_question_is_held_for_poll_s_and_then_answered(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    c = node("c")
    assert c.poll() is None
    world.advance(9.9)
    assert c.look() is None
    world.advance(0.2)
    order = c.look()
    assert order and order.unit is None and not order.stop


def test_a_free_node_takes_a_copy_of_a_straggler_and_the_first_answer_wins(
    world: World, node: Nodes
) -> None:
    a, b = node("a"), node("b")
    a.poll()
    b.poll()
    world.advance(5.0)
    b.done()
    for _ in range(8):
        world.advance(4.0)
        a.beat()
        if b.look() and b.unit:
            break
        if b.question in world.answers:
            b.poll()
    assert b.unit and a.unit and b.unit.unit_id == a.unit.unit_id
    b.done()
    order = a.beat()
    assert order and order.cancel == "router_round/0/1"


def test_pause_hands_out_nothing_and_resume_goes_on(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    world.ask(msg.Pause("power cut ahead"))
    assert b.poll() is None
    assert a.done() is None  # a unit in work may be finished while paused
    assert "router_round/0/1" in world.coordinator.state.finished
    world.ask(msg.Resume())
    assert b.look() or a.look()
    assert world.coordinator.state.phase is Phase.ROUTING


def test_one_seed_model_is_trained_before_all_experts() -> None:
    world = World(make_manifest(expert={"init": "seed"}))
    nodes = [FakeNode(world, n).enrol().join() for n in "ab"]
    units = drive(world, nodes)
    assert units.index("train_seed") < units.index("train_expert/0")
    assert units.index("train_seed") < units.index("train_expert/1")
    assert unit(world.coordinator.state, UnitKey.parse("train_expert/0")).input("seed")


def test_experts_that_stay_home_are_evaluated_by_their_own_nodes() -> None:
    world = World(make_manifest(expert={"collect": "never"}))
    nodes = [FakeNode(world, n).enrol().join() for n in "abc"]
    drive(world, nodes)
    finished = world.coordinator.state.finished
    for expert in (0, 1):
        assert not finished[f"train_expert/{expert}"].outputs
        trained, evaluated = finished[f"train_expert/{expert}"], finished[f"evaluate/{expert}"]
        assert trained.node_id == evaluated.node_id


def test_an_expert_that_stayed_home_waits_for_its_node() -> None:
    world = World(make_manifest(expert={"collect": "never"}))
    a = FakeNode(world, "a").enrol().join()
    a.poll()
    while world.coordinator.state.phase is not Phase.EVALUATING:
        a.done()
        a.look()
    b = FakeNode(world, "b").enrol().join()
    assert a.unit
    assert b.poll() is None  # a is busy with one of its two, but has both
    world.advance(100.0)
    if b.question in world.answers:
        b.poll()
    assert b.unit is None


def test_without_held_out_text_nothing_is_evaluated() -> None:
    world = World(make_manifest(heldout_sequences=0))
    units = drive(world, [FakeNode(world, "a").enrol().join()])
    assert not [u for u in units if u.startswith("evaluate") or u == "shard/heldout"]
    assert world.coordinator.state.phase is Phase.FINISHED


def test_only_the_last_two_rounds_of_parameters_are_kept() -> None:
    world = World(make_manifest(rounds=5))
    drive(world, [FakeNode(world, "a").enrol().join()])
    finished = {e.unit_id: e for e in world.journal if isinstance(e, UnitAccepted)}
    for number in range(1, 6):
        digest = finished[f"router_round/0/{number}"].outputs[0].digest
        assert (digest in world.released) == (number <= 2)
        assert (digest in needed_blobs(world.coordinator.state)) == (number > 2)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"unit_id": "router_round/0/2"}, Refused),  # not this round
        ({"unit_id": "router_round/9/1"}, Refused),
        ({"unit_id": "nonsense"}, Malformed),
        ({"outputs": ()}, Malformed),
        ({"figures": {"loss": float("nan")}}, Malformed),
    ],
)
def test_a_malformed_result_changes_nothing(
    world: World, node: Nodes, change: dict[str, object], error: type[Exception]
) -> None:
    a = node("a")
    a.poll()
    events, leases = list(world.journal), dict(world.coordinator.leases.by_node)
    with pytest.raises(error):
        a.poll(finished=replace(a.result(), **change))
    assert world.journal == events
    assert world.coordinator.leases.by_node == leases
