"""Who goes on with an expert whose node vanished, from where, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import UnitStarted, WeightsCollected
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.errors import Malformed, Refused

LEASE_S = 20.0


def training(names: str = "ab", **changes: Any) -> tuple[World, list[FakeNode]]:
    """One expert in work on node a; the others are here and have asked for work."""
    expert = {"steps": 1000, **changes.pop("expert", {})}
    world = World(make_manifest(experts=1, rounds=1, expert=expert, **changes))
    nodes = [FakeNode(world, name).enrol().join() for name in names]
    a = nodes[0]
    a.poll()
    while world.coordinator.state.phase is not Phase.TRAINING:
        a.done()
        a.look()
    assert a.unit and a.unit.unit_id == "train_expert/0"
    for other in nodes[1:]:
        other.poll()
    return world, nodes


def asks(node: FakeNode, seconds: float) -> float:
    """Ask for work over and over; returns the seconds until there was some, or `seconds`."""
    began = node.world.now
    while node.world.now < began + seconds:
        node.world.advance(1.0)
        node.look()
        if node.unit:
            break
        if node.question in node.world.answers:
            node.poll()
    return node.world.now - began


def test_an_expert_is_kept_for_its_vanished_node_as_long_as_redoing_its_work_would_take() -> None:
    _, (a, b) = training()
    a.work(300.0)
    waited = asks(b, 1000.0)
    assert b.unit and b.unit.unit_id == "train_expert/0"
    assert waited == pytest.approx(300.0, abs=2.0)


def test_little_work_is_given_away_when_the_lease_ends() -> None:
    _, (a, b) = training()
    a.work(5.0)
    assert asks(b, 1000.0) == pytest.approx(LEASE_S, abs=2.0)


def test_nobody_waits_longer_than_the_run_allows() -> None:
    _, (a, b) = training(patience_s=60.0)
    a.work(300.0)
    assert asks(b, 1000.0) == pytest.approx(60.0, abs=2.0)


def test_a_node_that_comes_back_in_time_goes_on_with_its_expert() -> None:
    world, (a, b) = training()
    a.work(300.0)
    a.vanish()
    asks(b, 200.0)
    back = FakeNode(world, "a", incarnation=2, node_id=a.node_id).join()
    back.poll()
    assert back.unit and back.unit.unit_id == "train_expert/0" and not b.unit


def test_a_node_that_was_stopped_gives_its_lease_back_at_once_and_may_come_back() -> None:
    world, (a, b) = training()
    a.work(300.0)
    world.advance(15.0)
    answer = world.answer(msg.Leave(a.node_id, 1, "stopped by its operator"))
    assert answer.released == ("train_expert/0",)
    assert asks(b, 1000.0) == pytest.approx(315.0, abs=2.0)


def test_a_revoked_node_is_not_waited_for() -> None:
    world, (a, b) = training()
    a.work(300.0)
    world.ask(msg.Revoke(a.node_id))
    asks(b, 2.0)
    assert b.unit


def test_a_node_revoked_after_a_restart_is_not_waited_for() -> None:
    world, (a, b) = training()
    a.work(300.0)
    a.vanish()
    world.restart()
    world.ask(msg.Revoke(a.node_id))
    b.join()
    b.poll()
    assert asks(b, 1000.0) == pytest.approx(LEASE_S, abs=2.0)
    assert b.unit


def test_an_expert_that_failed_on_its_node_is_not_kept_for_it() -> None:
    _, (a, b) = training()
    a.work(300.0)
    a.poll(failed=msg.Failure("train_expert/0", "out of memory"))
    asks(b, 2.0)
    assert b.unit


def test_who_started_an_expert_is_known_after_a_restart() -> None:
    world, (a, b) = training()
    assert [e.node_id for e in world.journal if isinstance(e, UnitStarted)] == [a.node_id]
    a.work(300.0)
    a.vanish()
    world.restart()
    b.join()
    b.poll()
    asks(b, 200.0)
    assert not b.unit
    back = FakeNode(world, "a", incarnation=2, node_id=a.node_id).join()
    back.poll()
    assert back.unit and back.unit.unit_id == "train_expert/0"


def test_another_node_goes_on_from_the_weights_collected_last() -> None:
    world, (a, b) = training(expert={"collect": "every 100 steps"})
    a.work(100.0)
    order = a.beat(0.1, collected=a.state_at(100))
    assert order and order.collected == 100
    a.work(100.0)
    a.beat(0.2, collected=a.state_at(200))
    a.work(10.0)
    waited = asks(b, 1000.0)  # only what came after step 200 is lost
    assert waited == pytest.approx(LEASE_S, abs=2.0)
    assert b.unit and b.unit.start_step == 200
    state = b.unit.input("state")
    collected = [e for e in world.journal if isinstance(e, WeightsCollected)]
    assert state and state.digest == collected[-1].outputs[0].digest
    b.done()
    assert world.coordinator.state.finished["train_expert/0"].figures["from_step"] == 200.0


def test_a_node_that_never_went_away_may_finish_what_it_began_at_the_start() -> None:
    world, (a, _) = training(expert={"collect": "every 100 steps"})
    a.beat(0.1, collected=a.state_at(100))
    a.done()  # it was handed out from step 0
    assert world.coordinator.state.finished["train_expert/0"].figures["from_step"] == 0.0


def test_older_weights_change_nothing() -> None:
    world, (a, _) = training(expert={"collect": "every 100 steps"})
    a.beat(0.2, collected=a.state_at(200))
    events = list(world.journal)
    order = a.beat(0.2, collected=a.state_at(100))
    assert order and order.collected == 100  # it need not be said again
    assert world.journal == events


def test_of_an_expert_on_its_way_the_last_two_states_are_kept_until_it_is_done() -> None:
    world, (a, _) = training(expert={"collect": "every 100 steps"})
    states = [a.state_at(step) for step in (100, 200, 300)]
    for state in states:
        a.beat(0.1, collected=state)
    digests = [state.outputs[0].digest for state in states]
    assert world.released.count(digests[0]) == 1
    assert digests[1] not in world.released
    a.done()
    assert set(digests) <= set(world.released)


@pytest.mark.parametrize(
    ("figures", "error"),
    [
        ({"step": 0.0, "from_step": 0.0}, Malformed),
        ({"step": 99.5, "from_step": 0.0}, Malformed),
        ({"from_step": 0.0}, Malformed),
        ({"step": 300.0, "from_step": 250.0}, Refused),  # never handed out there
    ],
)
def test_weights_of_no_possible_step_change_nothing(
    figures: dict[str, float], error: type[Exception]
) -> None:
    world, (a, _) = training(expert={"collect": "every 100 steps"})
    events = list(world.journal)
    with pytest.raises(error):
        a.beat(0.1, collected=replace(a.state_at(100), figures=figures))
    assert world.journal == events


def test_a_result_from_a_step_that_was_never_handed_out_is_refused() -> None:
    world, (a, _) = training(expert={"collect": "every 100 steps"})
    with pytest.raises(Refused):
        a.poll(finished=replace(a.result(), figures={"from_step": 500.0}))
    assert "train_expert/0" not in world.coordinator.state.finished


def test_a_run_that_does_not_collect_on_the_way_refuses_weights() -> None:
    _, (a, _) = training(expert={"collect": "final"})
    with pytest.raises(Refused):
        a.beat(0.1, collected=a.state_at(100))


def test_a_fast_free_node_takes_a_copy_of_what_it_would_finish_much_sooner() -> None:
    world, (a, b) = training()
    world.coordinator.leases.present[a.node_id].tokens_per_s = 10.0
    world.coordinator.leases.present[b.node_id].tokens_per_s = 300.0
    a.work(60.0, rate=1e-4)  # 10,000 s in all
    asks(b, 2.0)
    assert b.unit and b.unit.unit_id == "train_expert/0"
    assert a.unit and a.beat(0.02)
    b.done()
    order = a.beat(0.02)
    assert order and order.cancel == "train_expert/0"


def test_a_node_that_is_no_faster_takes_no_copy() -> None:
    world, (a, b) = training()
    for node in (a, b):
        world.coordinator.leases.present[node.node_id].tokens_per_s = 10.0
    a.work(60.0, rate=1e-4)
    asks(b, 2.0)
    assert not b.unit


def slow_at_work(names: str) -> tuple[World, list[FakeNode]]:
    """Node a needs 10,000 s for the expert, as its progress shows; the others are no faster."""
    world, nodes = training(names, poll_s=500.0)
    for node in nodes:
        world.coordinator.leases.present[node.node_id].tokens_per_s = 10.0
    nodes[0].work(60.0, rate=1e-4)
    return world, nodes


def test_a_faster_node_that_comes_gets_its_copy_at_once() -> None:
    world, (a, b) = slow_at_work("ab")
    assert b.look() is None
    fast = FakeNode(world, "fast", tokens_per_s=300.0).enrol().join()
    fast.poll()
    assert fast.unit and a.unit and fast.unit.key == a.unit.key


def test_a_copy_that_is_given_back_goes_to_the_next_fastest_at_once() -> None:
    world, _ = slow_at_work("a")
    fast = FakeNode(world, "fast", tokens_per_s=300.0).enrol().join()
    fast.poll()
    assert fast.unit
    other = FakeNode(world, "other", tokens_per_s=200.0).enrol().join()
    other.poll()
    assert not other.unit
    world.ask(msg.Leave(fast.node_id, 1))
    other.look()
    assert other.unit and other.unit.unit_id == "train_expert/0"


def test_time_alone_lets_a_free_node_take_a_copy_of_what_lasts_too_long() -> None:
    world = World(make_manifest(poll_s=500.0))
    a, b = (FakeNode(world, name).enrol().join() for name in "ab")
    a.poll()
    b.poll()
    world.advance(1.0)
    b.done()  # a router round takes a second, usually
    world.advance(14.0)
    a.beat()  # its lease goes on to 35 s after it began
    assert world.coordinator.deadline() == pytest.approx(world.now + 5.0)
    world.advance(5.0)
    b.look()
    assert b.unit and a.unit and b.unit.key == a.unit.key
