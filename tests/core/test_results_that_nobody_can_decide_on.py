"""What too few nodes can look at, or agree on: it is waited for, waived, redone, or asked about."""

from __future__ import annotations

import pytest
from support.audit_world import (
    all_honest,
    audited,
    auditor_of,
    drive,
    events_of,
    quarantined,
    reach,
    turn,
    verdicts,
)
from support.core_rules import sound
from support.core_world import FakeNode, World

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import AuditSettled, UnitRejected
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import UnitKind


def gone(world: World, node: FakeNode) -> None:
    """A node that says goodbye."""
    world.ask(msg.Leave(node.node_id, node.incarnation))
    node.unit, node.question, node.stopped = None, 0, "left"


def test_where_nobody_else_was_there_for_so_long_results_count_and_that_is_said() -> None:
    world, nodes = audited("ab")
    a, b = nodes
    a.poll()
    gone(world, b)
    a.done()
    world.advance(59.0)
    assert not events_of(world, AuditSettled)
    world.advance(2.0)
    (settled,) = events_of(world, AuditSettled)
    assert (settled.unit_id, settled.verdict) == ("router_round/0/1", "waived")
    assert "60 s" in settled.reason
    assert world.coordinator.state.waived == {"router_round/0/1": settled.reason}
    began = world.now
    drive(world, nodes)
    assert world.coordinator.state.phase is Phase.FINISHED
    assert world.now - began < 30.0  # nobody was there for long enough already
    assert world.coordinator.state.nodes[a.node_id].proven == 0
    sound(world)


@pytest.mark.parametrize("wait_s", [60.0, 0.0])
def test_a_busy_node_is_there_and_is_waited_for(wait_s: float) -> None:
    world, nodes = audited("ab", audit={"wait_s": wait_s})
    a, b = nodes
    a.poll()
    b.poll()
    a.done()
    b.work(300.0)
    assert not events_of(world, AuditSettled)
    b.done()
    assert auditor_of(nodes, "router_round/0/1") is b


def test_a_disputed_result_that_nobody_can_decide_on_is_done_again_without_blame() -> None:
    world, nodes = audited("ab")
    a, b = nodes
    a.lies = True
    a.poll()
    a.done()
    b.poll()
    while b.unit and b.unit.key.kind is not UnitKind.AUDIT:
        b.done()
        b.look()
    b.done()
    a.lies = False
    b.vanish()
    world.advance(200.0)
    rejected = events_of(world, UnitRejected)
    assert [e.unit_id for e in rejected][:1] == ["router_round/0/1"]
    assert not quarantined(world)
    assert world.coordinator.state.nodes[a.node_id].doubted
    sound(world)


def test_two_nodes_that_never_agree_are_the_operator_s_to_decide() -> None:
    world, nodes = audited("ab", audit={"wait_s": 5.0})
    for node in nodes:
        node.lies = True
    for _ in range(200):
        if world.coordinator.state.phase is Phase.PAUSED:
            break
        turn(nodes)
        world.advance(1.0)
    state = world.coordinator.state
    assert state.phase is Phase.PAUSED
    assert "is disputed by" in state.reason and "revoke one of them" in state.reason
    third = FakeNode(world, "c").enrol().join()
    world.ask(msg.Resume())
    nodes[1].lies = False
    for _ in range(60):
        turn([*nodes, third])
        world.advance(1.0)
    assert [e.node_id for e in quarantined(world)] == [nodes[0].node_id]


def test_a_judge_that_fails_over_an_opinion_asks_another_node_and_fails_no_run() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    world.do_jobs = False
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    assert auditor.unit
    opinion = auditor.unit.unit_id
    auditor.done()
    world.fail_job("can't be read", opinion)
    assert auditor_of(nodes, "router_round/0/1") is not auditor
    assert world.coordinator.state.phase is Phase.ROUTING
    auditor_of(nodes, "router_round/0/1").done()
    world.fail_job("no idea", "")
    assert "router_round/0/1" not in world.coordinator.state.finished
    assert world.coordinator.state.phase is Phase.ROUTING
    sound(world)


def test_a_wrong_expert_that_two_nodes_worked_on_convicts_its_last_one_only_when_repeated() -> None:
    world, nodes = audited("abcde", experts=1, expert={"steps": 900, "collect": "every 100 steps"})
    reach(world, nodes, Phase.TRAINING)
    first = next(n for n in nodes if n.look() and n.unit)
    first.beat(0.2, collected=first.state_at(200))
    gone(world, first)
    world.advance(250.0)
    rest = [n for n in nodes if n is not first]
    for node in rest:
        node.look()
        if node.question in world.answers:
            node.poll()
    heir = next(n for n in rest if n.unit)
    heir.lies = True  # or it was given poisoned weights: nobody can tell
    while "bad" not in verdicts(world).values():
        turn(rest)
        world.advance(1.0)
    heir.lies = False
    assert not quarantined(world)
    assert world.coordinator.state.nodes[heir.node_id].doubted
    drive(world, rest)
    assert world.coordinator.state.finished["train_expert/0"].figures["from_step"] == 0.0
    assert all_honest(world)
