"""An expert leaves the mixture: who may, from when on, and that the run goes on without it."""

from __future__ import annotations

import pytest
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core import snapshot
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.core.withdrawal_book import owner, serves
from smalltalk_fed.errors import Forbidden, Refused

AUDITED = {"rate": 1.0, "first_units": 0}


def world(**run: object) -> World:
    return World(make_manifest(nodes_to_start=2, **run))


def nodes(run: World, *names: str) -> list[FakeNode]:
    return [FakeNode(run, name).enrol().join() for name in names]


def work_until(run: World, there: list[FakeNode], phase: Phase, unit: str = "") -> None:
    """Let the nodes work until the run is in this phase and, if named, somebody has this unit."""

    def reached() -> bool:
        has = any(node.unit and node.unit.unit_id == unit for node in there)
        return run.coordinator.state.phase is phase and (has or not unit)

    for _ in range(400):
        for node in there:
            if not node.stopped and node.unit is None and node.look() is None:
                node.poll()
            if reached():
                return
            if node.unit is not None:
                node.done()
            elif not node.stopped:
                node.poll()
    raise AssertionError(f"never {phase} {unit}: {run.decisions[-8:]}")


def owner_of(run: World, there: list[FakeNode], expert: int) -> FakeNode:
    whose = owner(run.coordinator.state, expert)
    return next(node for node in there if node.node_id == whose)


def finished(collect: str = "final", **run: object) -> tuple[World, list[FakeNode]]:
    made = world(expert={"collect": collect}, **run)
    there = nodes(made, "a", "b")
    work_until(made, there, Phase.FINISHED)
    return made, there


def test_an_owner_withdraws_what_it_trained_and_nothing_is_kept_of_it() -> None:
    run, there = finished()
    node = owner_of(run, there, 0)
    kept = needed_blobs(run.coordinator.state)
    trained = run.coordinator.state.finished["train_expert/0"].outputs
    router = run.coordinator.state.finished["router_round/0/2"].outputs[0]
    assert {ref.digest for ref in (*trained, router)} <= set(kept)
    said = run.answer(msg.Withdraw((0,), node.node_id, True, "ours again"))
    assert said == msg.Done("expert 0 left the mixture")
    gone = run.journal[-1]
    assert isinstance(gone, silo_ev.ExpertWithdrawn)
    assert (gone.expert, gone.node_id, gone.by) == (0, node.node_id, "owner")
    assert gone.reason == "ours again"
    assert {ref.digest for ref in (*trained, router)} <= set(run.released)
    left = needed_blobs(run.coordinator.state)
    assert not {ref.digest for ref in (*trained, router)} & set(left)
    other = run.coordinator.state.finished["train_expert/1"].outputs
    assert {ref.digest for ref in other} <= set(left)
    assert run.coordinator.state.phase is Phase.FINISHED


def test_without_a_number_all_that_are_the_nodes_leave() -> None:
    run, there = finished()
    node = owner_of(run, there, 0)
    mine = sorted(serves(run.coordinator.state, node.node_id))
    run.ask(msg.Withdraw((), node.node_id, True))
    assert sorted(run.coordinator.state.withdrawn) == mine
    assert serves(run.coordinator.state, node.node_id) == frozenset()


def test_it_may_be_said_again() -> None:
    run, there = finished()
    node = owner_of(run, there, 1)
    run.ask(msg.Withdraw((1,), node.node_id, True))
    events = len(run.journal)
    said = run.answer(msg.Withdraw((1,), node.node_id, True))
    assert said == msg.Done("expert 1 had left it before")
    assert len(run.journal) == events


def test_another_nodes_expert_is_not_a_nodes_to_withdraw() -> None:
    run, there = finished()
    node = owner_of(run, there, 0)
    other = next(each for each in there if each is not node)
    with pytest.raises(Forbidden, match=f"expert 0 is node {node.node_id}'s"):
        run.ask(msg.Withdraw((0,), other.node_id, True))
    assert run.coordinator.state.withdrawn == {}


def test_the_operator_withdraws_any_and_all_of_a_node() -> None:
    run, there = finished()
    node = owner_of(run, there, 0)
    run.ask(msg.Withdraw((1,), reason="asked by letter"))
    assert run.coordinator.state.withdrawn[1].by == "operator"
    run.ask(msg.Withdraw((), node.node_id))
    assert 0 in run.coordinator.state.withdrawn


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (msg.Withdraw((2,)), "no expert 2; there are 0 to 1"),
        (msg.Withdraw((), "n-nobody"), "no node is called 'n-nobody'"),
        (msg.Withdraw(), "no expert is node"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(message: msg.Withdraw, says: str) -> None:
    run, _ = finished()
    with pytest.raises(Refused, match=says):
        run.ask(message)


def test_before_experts_are_trained_none_is_anybodys() -> None:
    run = world()
    there = nodes(run, "a", "b")
    there[0].poll()
    with pytest.raises(Refused, match="no expert is node"):
        run.ask(msg.Withdraw((), there[0].node_id, True))
    with pytest.raises(Refused, match="the run is routing: no expert is trained yet"):
        run.ask(msg.Withdraw((0,)))


def test_a_run_under_way_goes_on_without_it() -> None:
    run = world()
    there = nodes(run, "a", "b")
    work_until(run, there, Phase.TRAINING, "train_expert/0")
    holder = next(n for n in there if n.unit and n.unit.unit_id == "train_expert/0")
    run.ask(msg.Withdraw((0,), holder.node_id, True))
    beat = holder.beat()
    assert beat is not None
    assert beat.cancel == "train_expert/0"
    holder.unit = None
    work_until(run, there, Phase.FINISHED)
    done = {each.unit_id for each in run.journal if isinstance(each, ev.UnitAccepted)}
    assert "train_expert/1" in done
    assert "evaluate/1" in done
    assert not {"train_expert/0", "evaluate/0"} & done


def test_a_result_that_comes_after_the_withdrawal_does_not_count() -> None:
    run = world()
    there = nodes(run, "a", "b")
    work_until(run, there, Phase.TRAINING, "train_expert/0")
    holder = next(n for n in there if n.unit and n.unit.unit_id == "train_expert/0")
    run.ask(msg.Withdraw((0,), reason="asked by letter"))
    holder.done()
    assert "train_expert/0" not in run.coordinator.state.finished
    assert serves(run.coordinator.state, holder.node_id) == frozenset()
    work_until(run, there, Phase.FINISHED)


def test_weights_collected_on_the_way_are_let_go() -> None:
    run = world(expert={"collect": "every 2 steps", "steps": 8})
    there = nodes(run, "a", "b")
    work_until(run, there, Phase.TRAINING, "train_expert/0")
    holder = next(n for n in there if n.unit and n.unit.unit_id == "train_expert/0")
    part = holder.state_at(2)
    holder.beat(collected=part)
    run.ask(msg.Withdraw((0,), holder.node_id, True))
    assert part.outputs[0].digest in run.released
    holder.beat(collected=holder.state_at(4))
    assert "train_expert/0" not in run.coordinator.state.collected


def test_opinions_on_it_are_asked_for_no_more_and_its_router_stays_for_the_others() -> None:
    run = world(audit=AUDITED)
    there = nodes(run, "a", "b", "c")
    work_until(run, there, Phase.TRAINING, "audit/1/train_expert/0")
    auditor = next(n for n in there if n.unit and n.unit.unit_id == "audit/1/train_expert/0")
    router = run.coordinator.state.finished["router_round/0/2"].outputs[0]
    run.ask(msg.Withdraw((0,)))
    assert router.digest in needed_blobs(run.coordinator.state)
    auditor.done()
    assert "train_expert/0" not in run.coordinator.state.audits
    work_until(run, there, Phase.FINISHED)
    assert router.digest in run.released
    assert router.digest not in needed_blobs(run.coordinator.state)


def test_a_restart_and_a_snapshot_know_of_it() -> None:
    run, there = finished()
    run.ask(msg.Withdraw((0,), owner_of(run, there, 0).node_id, True, "ours again"))
    before = run.coordinator.state
    read = snapshot.from_json(run.manifest, snapshot.to_json(before))
    assert read == before
    run.restart()
    assert run.coordinator.state == before
    assert run.coordinator.state.is_finished(UnitKey(UnitKind.TRAIN_EXPERT, 0))


def test_only_who_trained_an_expert_serves_it_and_nobody_who_was_shut_out() -> None:
    run, there = finished("never")
    node = owner_of(run, there, 0)
    assert 0 in serves(run.coordinator.state, node.node_id)
    other = next(each for each in there if each is not node)
    assert 0 not in serves(run.coordinator.state, other.node_id)
    run.ask(msg.Revoke(node.node_id, "it lies"))
    assert serves(run.coordinator.state, node.node_id) == frozenset()
