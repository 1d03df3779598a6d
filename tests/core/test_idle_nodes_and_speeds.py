"""Thousands of idle nodes cost little; fast nodes get the large units; a pause is heard."""

from __future__ import annotations

import pytest
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.dispatch import SPARE_QUESTIONS
from smalltalk_fed.core.phases import Phase

HELD_MAX = SPARE_QUESTIONS + 2 * 2


def crowd(world: World, count: int, tokens_per_s: float = 1.0) -> list[FakeNode]:
    """Nodes that have joined and asked for work."""
    nodes = [
        FakeNode(world, f"{tokens_per_s:g}-{i}", tokens_per_s=tokens_per_s) for i in range(count)
    ]
    for node in nodes:
        node.enrol().join().poll()
        node.look()
    return nodes


def busy(world: World) -> list[FakeNode]:
    """The two nodes that have all the work."""
    nodes = [FakeNode(world, name).enrol().join() for name in "ab"]
    for node in nodes:
        node.poll()
    return nodes


def test_only_so_many_questions_are_held_and_the_others_are_told_to_come_back() -> None:
    world = World(make_manifest(idle_wait_s=300.0))
    busy(world)
    nodes = crowd(world, 100)
    assert len(world.coordinator.leases.waiting) == HELD_MAX
    away = [node.order for node in nodes if node.look() and node.order]
    assert len(away) == 100 - HELD_MAX
    assert all(10.0 <= order.wait_s <= 300.0 and not order.stop for order in away)
    assert max(order.wait_s for order in away) > 50.0  # one question a second of them all


def test_the_fastest_are_held() -> None:
    world = World(make_manifest())
    busy(world)
    crowd(world, HELD_MAX - 5, tokens_per_s=1.0)
    fast = crowd(world, 5, tokens_per_s=9.0)
    crowd(world, 20, tokens_per_s=2.0)
    assert all(node.node_id in world.coordinator.leases.waiting for node in fast)


def test_who_has_a_router_at_hand_is_held_however_slow() -> None:
    world = World(make_manifest())
    a, b = busy(world)
    crowd(world, HELD_MAX, tokens_per_s=9.0)
    a.done()  # a's next round begins when b is done
    assert a.node_id in world.coordinator.leases.waiting
    b.done()
    assert a.look() and a.unit and a.unit.unit_id == "router_round/0/2"


def test_an_idle_node_is_never_told_to_wait_longer_than_the_run_says() -> None:
    world = World(make_manifest(idle_wait_s=3.0))  # shorter than a poll
    busy(world)
    nodes = crowd(world, HELD_MAX + 9)
    assert {node.order.wait_s for node in nodes if node.look() and node.order} == {3.0}


def test_the_largest_expert_goes_to_the_fastest_node() -> None:
    world = World(make_manifest(), loads=(2.0, 8.0))
    slow = FakeNode(world, "slow", tokens_per_s=1.0).enrol().join()
    fast = FakeNode(world, "fast", tokens_per_s=7.0).enrol().join()
    third = FakeNode(world, "third", tokens_per_s=1.0).enrol().join()
    third.poll()
    while world.coordinator.state.phase is not Phase.TRAINING:
        third.done()
        third.look()
    third.poll(failed=msg.Failure("train_expert/0", "no"))
    third.poll(failed=msg.Failure("train_expert/1", "no"), wants_work=False)
    world.ask(msg.Pause())
    slow.poll()
    fast.poll()
    world.ask(msg.Resume())
    fast.look()
    assert fast.unit and fast.unit.unit_id == "train_expert/1"


def test_a_pause_reaches_a_working_node_with_its_next_heartbeat_and_it_gets_its_unit_back() -> None:
    world = World(make_manifest(poll_s=3.0))
    a, b = busy(world)
    assert a.unit
    held = a.unit.unit_id
    order = a.beat()
    assert order and order.heartbeat_s <= 3.0
    world.ask(msg.Pause("quiet hours"))
    order = a.beat()
    assert order and order.cancel == held and "quiet hours" in order.reason
    a.unit = None
    a.poll()
    assert b.unit
    world.advance(2.0)
    world.ask(msg.Resume())
    assert a.look() and a.unit and a.unit.unit_id == held


def test_shares_follow_measured_speeds() -> None:
    world = World(make_manifest(rounds=2, assignment={"capacity": "throughput"}))
    world.do_jobs = False
    nodes = [
        FakeNode(world, "slow", tokens_per_s=100.0).enrol().join(),
        FakeNode(world, "fast", tokens_per_s=300.0).enrol().join(),
    ]
    job = world.jobs[0]
    assert isinstance(job, jmsg.AssignJob) and job.weights == ()  # nothing is measured yet
    world.finish_job()
    for node in nodes:
        node.poll()
    speeds = {node.unit.key.expert: node.tokens_per_s for node in nodes if node.unit}
    for node in nodes:
        node.done()
    job = world.jobs[0]
    assert isinstance(job, jmsg.AssignJob)
    assert job.weights == pytest.approx([speeds[e] / 200.0 for e in (0, 1)])
    world.finish_job()
    for node in nodes:
        node.look()
        node.done()
    unit = next(node.unit for node in nodes if node.look() and node.unit)
    assert unit.unit_id.startswith("shard") and unit.weights == job.weights


def test_no_share_follows_a_speed_that_is_out_of_all_proportion() -> None:
    world = World(make_manifest(rounds=2, experts=3, assignment={"capacity": "throughput"}))
    world.do_jobs = False
    nodes = [FakeNode(world, n, tokens_per_s=s).enrol().join() for n, s in
             (("a", 1.0), ("b", 1.0), ("c", 1e9))]  # fmt: skip
    world.finish_job()
    for node in nodes:
        node.poll()
    for node in nodes:
        node.done()
    job = world.jobs[0]
    assert isinstance(job, jmsg.AssignJob)
    assert min(job.weights) == pytest.approx(1 / 8)
    assert max(job.weights) <= 8


def test_a_node_that_asks_again_gets_an_answer_to_its_earlier_question_too() -> None:
    """Or a node that asks without end would be held without end."""
    world = World(make_manifest())
    busy(world)
    (idle,) = crowd(world, 1)
    assert idle.order is None
    earlier = [idle.question]
    for _ in range(5):
        assert idle.poll() is None
        earlier.append(idle.question)
    assert [number in world.answers for number in earlier] == [True] * 5 + [False]
    assert world.answers[earlier[0]].reason == "this node asked again"
    assert world.answers[earlier[0]].unit is None
