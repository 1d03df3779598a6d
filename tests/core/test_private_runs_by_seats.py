"""A private run through the core: seats, blocks, counts, prices."""

from __future__ import annotations

import pytest
from support.core_world import World, blob
from support.silo_world import private_manifest, silo, steps, three_silos, work, work_until

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silos
from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.errors import Refused


@pytest.fixture
def world() -> World:
    return World(private_manifest())


def taken(world: World) -> dict[int, str]:
    return {seat: each.node_id for seat, each in world.coordinator.state.seats.items()}


# --------------------------------------------------------------------------------- seats


def test_the_run_begins_when_every_seat_is_taken(world: World) -> None:
    nodes = [silo(world, name).join() for name in "ab"]
    assert world.coordinator.state.phase is Phase.RECRUITING
    nodes.append(silo(world, "c").join())
    assert world.coordinator.state.phase is Phase.ROUTING
    assert taken(world) == {seat: node.node_id for seat, node in enumerate(nodes)}


def test_a_node_without_its_text_takes_no_seat_until_it_has_read_it(world: World) -> None:
    before = len(world.journal)
    node = silo(world, "a", text=(0, 0, "")).join()
    assert taken(world) == {}
    assert len(world.journal) == before + 2  # its invitation, and that it enrolled
    assert node.node_id not in world.coordinator.leases.present
    node.text = (20, 6, "a" * 64)
    node.join()
    assert taken(world) == {0: node.node_id}
    presence = world.coordinator.leases.present[node.node_id]
    assert presence.capabilities.train_sequences == 20


def test_a_node_may_choose_its_seat_and_no_one_elses(world: World) -> None:
    node = silo(world, "a", seat=2).join()
    assert taken(world) == {2: node.node_id}
    with pytest.raises(Refused, match="seat 2 is taken"):
        silo(world, "b", seat=2).join()
    with pytest.raises(Refused, match="not one of this run"):
        silo(world, "c", seat=3).join()
    node.seat = 1
    with pytest.raises(Refused, match="seat 2 already"):
        node.join()


def test_too_little_text_is_refused_with_what_is_needed(world: World) -> None:
    with pytest.raises(Refused, match="needs 8 and 2"):
        silo(world, "a", text=(7, 6, "a" * 64)).join()
    with pytest.raises(Refused, match="needs 8 and 2"):
        silo(world, "b", text=(20, 1, "b" * 64)).join()


def test_another_text_is_another_silo(world: World) -> None:
    node = silo(world, "a").join()
    node.text = (20, 6, "f" * 64)
    with pytest.raises(Refused, match="not the one that it took seat 0 with"):
        node.join()


def test_no_seat_is_left_for_a_fourth(world: World) -> None:
    three_silos(world)
    with pytest.raises(Refused, match="all 3 seats"):
        silo(world, "d").join()


def test_a_seat_of_a_node_that_was_shut_out_is_free_while_the_run_recruits(world: World) -> None:
    first = silo(world, "a").join()
    world.ask(msg.Revoke(first.node_id))
    second = silo(world, "b").join()
    assert taken(world) == {0: second.node_id}
    for name in "cd":
        silo(world, name).join()
    world.ask(msg.Revoke(second.node_id))
    with pytest.raises(Refused, match="all 3 seats"):
        silo(world, "e").join()


# ------------------------------------------------------------------------------- the run


def test_blocks_counts_and_prices_in_order_until_the_end(world: World) -> None:
    nodes = three_silos(world)
    work(world, nodes, "finished")
    # Three rounds in blocks of two, then counts with the finished routers.
    assert steps(world.journal) == [(1, 0), (2, 0), (2, 1), (2, 2)]
    done = [e.unit_id for e in world.journal if isinstance(e, UnitAccepted)]
    per_seat = ["silo_block/0/1", "count/0/1/0", "silo_block/0/2", "count/0/2/0", "count/0/2/1"]
    assert [u for u in done if u.split("/")[0] != "train_expert" and u.split("/")[1] == "0"] == [
        *per_seat, "count/0/2/2", "evaluate_silo/0",
    ]  # fmt: skip
    assert {u for u in done if u.startswith("train_expert")} == {
        f"train_expert/{e}" for e in range(4)
    }


def test_each_unit_goes_to_the_node_that_has_the_text(world: World) -> None:
    nodes = three_silos(world)
    work(world, nodes, "finished")
    hosts = {0: 0, 1: 1, 2: 2, 3: 2}  # expert -> seat
    for event in world.journal:
        if isinstance(event, UnitAccepted):
            key = UnitKey.parse(event.unit_id)
            seat = key.seat if key.seat >= 0 else hosts[key.expert]
            assert event.node_id == nodes[seat].node_id, event.unit_id


def test_a_vanished_silo_is_waited_for_and_nobody_gets_its_unit(world: World) -> None:
    a, b, c = three_silos(world)
    a.poll()
    assert a.unit and a.unit.unit_id == "silo_block/0/1"
    for node in (b, c):
        node.poll()
        node.done()
    world.advance(10_000.0)
    for node in (b, c):
        node.poll()
        assert node.unit is None
    assert world.coordinator.state.phase is Phase.ROUTING
    a.unit, a.incarnation = None, 2
    a.join().poll()
    assert a.unit and a.unit.unit_id == "silo_block/0/1"


def test_counts_come_with_all_routers_and_the_prices_of_then(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "count/0/2/1")
    unit = nodes[0].unit
    assert unit is not None
    assert [ref.name for ref in unit.inputs] == [f"router-{e}" for e in range(4)]
    state = world.coordinator.state
    assert unit.prices == state.moves[-1].prices == (2.0, 4.0, 6.0, 8.0)
    for expert, ref in enumerate(unit.inputs):
        assert ref == silos.router(state, expert, 2)


def test_a_block_begins_from_the_silos_own_routers_alone(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "silo_block/2/2")
    unit = nodes[2].unit
    assert unit is not None
    assert [ref.name for ref in unit.inputs] == ["router-2", "router-3"]


def test_an_expert_is_told_its_part_of_all_text() -> None:
    world = World(private_manifest())
    sizes = {"a": 10, "b": 30, "c": 40}
    nodes = [silo(world, n, text=(size, 6, n * 64)).join() for n, size in sizes.items()]
    work(world, nodes, "training")
    nodes[0].poll()
    assert nodes[0].unit
    assert nodes[0].unit.weights == (0.125, 0.375, 0.25, 0.25)


def test_nobody_else_may_hand_in_what_a_silo_alone_can_do(world: World) -> None:
    a, b, _ = three_silos(world)
    a.poll()
    assert a.unit
    result = a.result()
    with pytest.raises(Refused, match="has its text"):
        b.poll(finished=result)


def test_routers_that_did_not_change_are_refused(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "silo_block/0/2")
    a = nodes[0]
    assert a.unit
    same = blob("router-0", "silo_block/0/1/router-0")
    with pytest.raises(Refused, match="unchanged"):
        a.poll(finished=Result(a.unit.unit_id, (same,)))


def test_a_result_said_again_after_the_prices_moved_still_counts(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "count/0/1/0")
    a = nodes[0]
    result = a.result()
    a.done()
    for later in ("count/0/2/0", "count/0/2/1"):  # it is remembered, and then only that it was
        work_until(world, nodes, later)
        a.unit = None
        order = a.poll(finished=result)
        assert order is None or order.accepted == result.unit_id


def test_a_silo_that_fails_again_and_again_pauses_the_run(world: World) -> None:
    a, *_ = three_silos(world)
    for _ in range(6):
        a.poll()
        assert a.unit
        failure = msg.Failure(a.unit.unit_id, "its disk is full")
        a.unit = None
        a.poll(failed=failure, wants_work=False)
    state = world.coordinator.state
    assert state.phase is Phase.PAUSED
    assert "its disk is full" in state.reason
    assert "resume" in state.reason
    world.ask(msg.Resume())
    a.poll()
    assert a.unit and a.unit.unit_id == "silo_block/0/1"


def test_counts_that_cannot_be_used_are_asked_for_again(world: World) -> None:
    nodes = three_silos(world)
    world.do_jobs = False
    for _ in range(6):
        for node in nodes:
            node.poll() if not node.unit else node.done()
    assert world.jobs
    world.fail_job("the counts are more than its held-out text", "count/1/1/0")
    assert world.coordinator.state.phase is Phase.ROUTING
    world.do_jobs = True
    work(world, nodes, "finished")


def test_counts_that_can_never_be_used_pause_the_run(world: World) -> None:
    """Only its own silo can count again: nobody's word but its operator's ends the run."""
    nodes = three_silos(world)
    world.do_jobs = False
    turns = iter(100 * nodes)
    for _ in range(6):
        while not world.jobs:
            node = next(turns)
            node.poll() if not node.unit else node.done()
        world.fail_job("the counts are more than its held-out text", "count/1/1/0")
    state = world.coordinator.state
    assert state.phase is Phase.PAUSED
    assert "more than its held-out text" in state.reason
