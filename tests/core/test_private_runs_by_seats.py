"""A private run through the core: seats, blocks, counts, prices, experts that stay."""

from __future__ import annotations

import json

import pytest
from support.core_world import World, blob
from support.silo_world import private_manifest, silo, steps, three_silos, work, work_until

from smalltalk_fed.core import handout, silos
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.silo_events import SeatTaken
from smalltalk_fed.core.snapshot import from_json, to_json
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


# ---------------------------------------------------------------------------- public text


def test_public_text_is_divided_by_all_routers_before_the_experts_train() -> None:
    world = World(private_manifest(public_sequences=25))
    nodes = three_silos(world)
    work(world, nodes, "sharding")
    shards = [f"shard/{index}" for index in range(3)]  # of ten sequences; none of held-out text
    assert [key.unit_id for key in world.coordinator.state.open] == shards
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


# ------------------------------------------------------------------ owners, and what stays


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


# ------------------------------------------------------------------------------ hard state


def test_state_is_the_fold_of_the_journal_and_survives_a_snapshot(world: World) -> None:
    nodes = three_silos(world, share="operator")
    for until in ("training", "evaluating", "finished"):
        work(world, nodes, until)
        state = world.coordinator.state
        fresh = World(world.manifest)
        for event in world.journal:
            fresh.coordinator.apply(event)
        assert fresh.coordinator.state == state
        assert from_json(world.manifest, json.loads(json.dumps(to_json(state)))) == state


def test_a_restarted_coordinator_goes_on_in_the_middle_of_a_step(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "count/1/2/1")
    world.restart()
    for node in nodes:
        node.question = 0
        node.join()
    work(world, nodes, "finished", turns=1000)
    assert steps(world.journal) == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_what_is_released_is_what_nothing_needs(world: World) -> None:
    nodes = three_silos(world)
    ever: dict[str, str] = {}
    for until in ("count/0/2/0", "count/0/2/2"):
        work_until(world, nodes, until)
        needed = needed_blobs(world.coordinator.state)
        assert not set(world.released) & set(needed)
        ever |= {ref.digest: ref.name for ref in needed.values()}
    work(world, nodes, "finished")
    needed = needed_blobs(world.coordinator.state)
    assert {ref.name for ref in needed.values()} == {"counts", *(f"router-{e}" for e in range(4))}
    assert len([1 for name in ever.values() if name == "counts"]) > 3
    assert set(world.released) >= {d for d, name in ever.items() if name == "counts"} - set(needed)


def test_counts_that_did_not_change_are_still_there(world: World) -> None:
    nodes = three_silos(world)
    same = blob("counts", "as before")
    for turn in (0, 1, 2):
        work_until(world, nodes, f"count/0/2/{turn}")
        unit = nodes[0].unit
        assert unit
        nodes[0].unit = None
        nodes[0].poll(finished=Result(unit.unit_id, (same,)))
    assert same.digest in needed_blobs(world.coordinator.state)
    assert same.digest not in world.released
    work(world, nodes, "training")
    assert same.digest not in world.released


def test_routers_of_the_last_two_blocks_are_kept() -> None:
    world = World(private_manifest(rounds=8))
    nodes = three_silos(world)
    for block in (2, 3, 4):
        work_until(world, nodes, f"silo_block/0/{block}")
        kept = {
            UnitKey.parse(unit_id).index
            for unit_id in world.coordinator.state.finished
            if unit_id.startswith("silo_block")
        }
        assert kept == {block - 1, block - 2} - {0}
    old = blob("router-1", "silo_block/1/1/router-1")
    assert old.digest in world.released


def test_a_lost_router_of_the_present_block_is_trained_again(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "count/0/1/0")
    lost = silos.router(world.coordinator.state, 1, 1)
    world._settle(world.coordinator.blob_damaged(lost.digest, "damaged", world.now))
    with pytest.raises(Refused, match="not part of the run's present phase"):
        nodes[0].done()  # its count is of no use now: it was begun with all routers there
    nodes[1].poll()
    assert nodes[1].unit and nodes[1].unit.unit_id == "silo_block/1/1"
    nodes[0].question = 0
    work(world, nodes, "finished", turns=1000)
