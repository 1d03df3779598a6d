"""A silo's owner takes its experts out of a private run that is under way, and the run goes on."""

from __future__ import annotations

import json

import pytest
from support.core_world import World, blob
from support.silo_world import (
    about,
    accepted,
    gone_at,
    private_manifest,
    silo,
    steps,
    three_silos,
    withdraw,
    work,
    work_until,
)

from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silos
from smalltalk_fed.core.handout import unit
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.seats import waiting_for
from smalltalk_fed.core.snapshot import from_json, to_json
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.core.withdrawal_book import serves
from smalltalk_fed.errors import Forbidden, Malformed, Refused


@pytest.fixture
def world() -> World:
    return World(private_manifest())


# ----------------------------------------------------------------------------- a whole silo


@pytest.mark.parametrize(
    "unit_id", ["silo_block/1/1", "silo_block/1/2", "count/1/1/0", "count/1/2/1"]
)
def test_a_silo_that_leaves_while_routers_learn_is_not_waited_for(
    world: World, unit_id: str
) -> None:
    a, b, c = three_silos(world)
    work_until(world, [a, b, c], unit_id)
    withdraw(world, b)
    b.vanish()
    work(world, [a, c], "finished")
    assert steps(world.journal) == [(1, 0), (2, 0), (2, 1), (2, 2)]
    done = accepted(world)
    assert about(done[gone_at(world) :], 1, (1,)) == []
    assert {f"train_expert/{e}" for e in (0, 2, 3)} <= set(done)
    assert {"evaluate_silo/0", "evaluate_silo/2"} <= set(done)


def test_a_silo_that_vanished_may_be_taken_out_by_the_operator(world: World) -> None:
    a, _b, c = three_silos(world)
    for node in (a, c):
        node.poll()
        node.done()
    present = {a.node_id, c.node_id}
    assert waiting_for(world.coordinator.state, present) == ["b"]
    world.ask(msg.Withdraw((1,), reason="its machine burnt"))
    assert waiting_for(world.coordinator.state, present) == []
    work(world, [a, c], "finished")


def test_its_unit_is_dropped_and_what_comes_of_it_does_not_count(world: World) -> None:
    a, b, c = three_silos(world)
    work_until(world, [a, b, c], "silo_block/1/1")
    withdraw(world, b)
    assert b.node_id not in world.coordinator.leases.by_node
    beat = b.beat()
    assert beat is not None
    assert beat.cancel == "silo_block/1/1"
    b.done()
    assert "silo_block/1/1" not in world.coordinator.state.finished
    b.look()
    assert b.unit is None


def test_others_count_without_its_router_and_its_price_stays(world: World) -> None:
    a, b, c = three_silos(world)
    work_until(world, [a, b, c], "count/0/2/0")
    assert world.coordinator.state.moves[-1].prices == (1.0, 2.0, 3.0, 4.0)
    withdraw(world, b)
    work_until(world, [a, c], "count/0/2/1")
    assert a.unit is not None
    assert [ref.name for ref in a.unit.inputs] == ["router-0", "router-2", "router-3"]
    assert a.unit.withdrawn == (1,)
    work(world, [a, c], "training")
    assert world.coordinator.state.moves[-1].prices == (4.0, 2.0, 12.0, 16.0)


def test_prices_move_by_the_counts_of_who_is_left(world: World) -> None:
    a, b, c = three_silos(world)
    work_until(world, [a, b, c], "count/0/1/0")
    world.do_jobs = False
    for node in (b, c):
        node.look() or node.poll()
        node.done()
    withdraw(world, b)  # its row is in
    a.done()
    (job,) = world.jobs
    assert isinstance(job, jmsg.PricesJob)
    assert (job.seats, job.experts) == ((0, 2), ((0,), (2, 3)))
    assert job.counts == tuple(blob("counts", f"count/{seat}/1/0/counts") for seat in (0, 2))
    assert (len(job.train), len(job.heldout)) == (2, 2)


def test_a_move_of_prices_that_was_begun_with_its_counts_does_not_count(world: World) -> None:
    a, b, c = three_silos(world)
    work_until(world, [a, b, c], "count/0/1/0")
    world.do_jobs = False
    for node in (a, b, c):
        node.look() or node.poll()
        node.done()
    withdraw(world, b)
    with_it, without = world.jobs
    world.finish_job()
    assert steps(world.journal) == []
    assert with_it.job_id != without.job_id
    world.finish_job()
    assert steps(world.journal) == [(1, 0)]


def test_its_routers_and_counts_are_let_go_and_are_for_nobody_to_read(world: World) -> None:
    a, b, c = three_silos(world)
    work_until(world, [a, b, c], "silo_block/0/2")
    finished = world.coordinator.state.finished
    router, count = (finished[u].outputs[0] for u in ("silo_block/1/1", "count/1/1/0"))
    assert silos.may_read(world.coordinator.state, a.node_id, router.digest)
    withdraw(world, b)
    assert {router.digest, count.digest} <= set(world.released)
    assert not {router.digest, count.digest} & set(needed_blobs(world.coordinator.state))
    assert not silos.may_read(world.coordinator.state, a.node_id, router.digest)
    other = finished["silo_block/2/1"].outputs[0]
    assert other.digest in needed_blobs(world.coordinator.state)


def test_a_silo_that_leaves_after_the_last_block_is_not_trained_and_not_evaluated(
    world: World,
) -> None:
    a, b, c = nodes = three_silos(world)
    work(world, nodes, "training")
    withdraw(world, b)
    work(world, [a, c], "evaluating")
    a.poll()
    assert a.unit is not None
    assert a.unit.withdrawn == (1,)
    assert a.unit.input("router-1") is None
    work(world, [a, c], "finished")
    assert not {"train_expert/1", "evaluate_silo/1"} & set(accepted(world))


def test_a_silo_that_leaves_while_all_are_evaluated_ends_the_evaluation_of_its_own(
    world: World,
) -> None:
    a, b, c = nodes = three_silos(world)
    work_until(world, nodes, "evaluate_silo/1")
    assert serves(world.coordinator.state, b.node_id) == {1}
    withdraw(world, b)
    assert serves(world.coordinator.state, b.node_id) == frozenset()
    b.done()
    work(world, [a, c], "finished")
    assert "evaluate_silo/1" not in accepted(world)


def test_what_others_sum_up_is_begun_again_without_it(world: World) -> None:
    shared = World(private_manifest(expert={"share": "public"}))
    a, b, c = nodes = three_silos(shared, share="public")
    work_until(shared, nodes, "evaluate_silo/0")
    assert a.unit is not None
    assert a.unit.input("weights-1")
    withdraw(shared, b)
    beat = a.beat()
    assert beat is not None
    assert beat.cancel == "evaluate_silo/0"
    a.unit = None
    a.poll()
    assert a.unit is not None
    assert a.unit.unit_id == "evaluate_silo/0"
    assert a.unit.input("weights-1") is None
    work(shared, [a, c], "finished")


def test_shares_of_the_others_stay_as_they_were(world: World) -> None:
    """So that they are trained as they would have been."""
    _a, b, _c = nodes = three_silos(world)
    work(world, nodes, "training")
    before = unit(world.coordinator.state, UnitKey.parse("train_expert/0"))
    withdraw(world, b)
    assert unit(world.coordinator.state, UnitKey.parse("train_expert/0")) == before
    assert sum(before.weights) == pytest.approx(1)


# ------------------------------------------------------------------------ what still counts


def test_a_count_that_was_begun_with_its_router_counts_and_is_not_asked_for_again(
    world: World,
) -> None:
    """Under noise, counting again would cost its silo again."""
    a, b, c = nodes = three_silos(world)
    work_until(world, nodes, "count/0/1/0")
    assert a.unit is not None
    begun = a.unit
    withdraw(world, b)
    beat = a.beat()
    assert beat is not None
    assert beat.cancel == ""
    assert begun in silos.earlier_forms(world.coordinator.state, begun.key)
    order = a.done()
    assert order is None or order.accepted == begun.unit_id
    work(world, [a, c], "finished")
    assert accepted(world).count(begun.unit_id) == 1


def test_each_form_in_which_a_count_may_be_in_work_is_known(world: World) -> None:
    _a, b, c = nodes = three_silos(world)
    work_until(world, nodes, "count/0/1/0")
    key, state = UnitKey.parse("count/0/1/0"), world.coordinator.state
    forms = [unit(state, key)]
    for node, expert in ((b, 1), (c, 3)):
        withdraw(world, node, expert)
        forms.insert(0, unit(state, key))
    assert forms[1:] == silos.earlier_forms(state, key)
    assert [form.withdrawn for form in forms] == [(1, 3), (1,), ()]


# ------------------------------------------------------------------------------- who, when


def test_before_routers_learn_there_is_nothing_to_withdraw(world: World) -> None:
    node = silo(world, "a").join()
    with pytest.raises(Refused, match=r"recruiting: nothing of any silo's text .* `revoke`"):
        withdraw(world, node)
    assert world.coordinator.state.withdrawn == {}


def test_a_silo_takes_out_its_own_and_no_other(world: World) -> None:
    a, b, _ = three_silos(world)
    a.poll()
    with pytest.raises(Forbidden, match=f"expert 0 is node {a.node_id}'s"):
        withdraw(world, b, 0)
    withdraw(world, b)
    assert sorted(world.coordinator.state.withdrawn) == [1]


def test_when_all_have_left_the_run_has_failed_and_says_why(world: World) -> None:
    nodes = three_silos(world)
    nodes[0].poll()
    for node in nodes:
        withdraw(world, node)
    state = world.coordinator.state
    assert state.phase is Phase.FAILED
    assert "every expert was withdrawn" in state.reason


def test_a_pause_does_not_keep_it_from_leaving(world: World) -> None:
    a, b, c = nodes = three_silos(world)
    work_until(world, nodes, "count/1/1/0")
    world.ask(msg.Pause())
    withdraw(world, b)
    assert world.coordinator.state.phase is Phase.PAUSED
    world.ask(msg.Resume())
    work(world, [a, c], "finished")


@pytest.mark.parametrize("unit_id", ["silo_block/2/1", "count/2/2/1", "train_expert/2"])
def test_a_restart_and_a_snapshot_know_of_it(world: World, unit_id: str) -> None:
    a, b, c = nodes = three_silos(world)
    work_until(world, nodes, unit_id)
    withdraw(world, b)
    withdraw(world, c, 3)
    before = world.coordinator.state
    assert from_json(world.manifest, json.loads(json.dumps(to_json(before)))) == before
    world.restart()
    assert world.coordinator.state == before
    for node in nodes:
        node.question, node.unit = 0, None
        node.join()
    work(world, [a, c], "finished", turns=1000)
    assert about(accepted(world)[gone_at(world) :], 1, (1, 3)) == []


def test_only_units_of_who_left_are_refused_by_name(world: World) -> None:
    _a, b, c = nodes = three_silos(world)
    work_until(world, nodes, "silo_block/2/1")
    withdraw(world, b)
    result = c.result()
    less = msg.Exchange(c.node_id, 1, finished=type(result)(result.unit_id, result.outputs[:1]))
    with pytest.raises(Malformed, match="must bring these outputs: router-2, router-3"):
        world.ask(less)
