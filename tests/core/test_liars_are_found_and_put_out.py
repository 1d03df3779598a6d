"""Wrong results and opinions are found; who gave them is out, what rested on them is redone."""

from __future__ import annotations

import contextlib

import pytest
from support.audit_world import (
    all_honest,
    audited,
    auditor_of,
    drive,
    events_of,
    opened,
    quarantined,
    reach,
    turn,
    verdicts,
)
from support.core_rules import sound
from support.core_world import FakeNode

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import UnitAccepted, UnitRejected
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.quarantine import ranges
from smalltalk_fed.core.units import UnitKind
from smalltalk_fed.errors import Forbidden, Refused


def test_a_wrong_result_is_found_by_two_and_done_again_by_others() -> None:
    world, nodes = audited("abcd")
    nodes[0].lies = True
    drive(world, nodes)
    (out,) = quarantined(world)
    assert out.node_id == nodes[0].node_id
    assert "router_round/0/1 is wrong: it is not so" in out.reason
    rejected = [e.unit_id for e in events_of(world, UnitRejected)]
    assert "router_round/0/1" in rejected
    assert world.coordinator.state.phase is Phase.FINISHED
    assert all_honest(world)
    assert world.coordinator.state.nodes[nodes[0].node_id].bad == 1
    sound(world)


def test_a_quarantined_node_is_told_so_and_every_call_is_refused_with_the_reason() -> None:
    world, nodes = audited("abcd")
    a = nodes[0]
    a.lies = True
    turn(nodes)
    a.done()
    assert a.look() is None or a.unit is None  # its question is held
    for _ in range(4):
        turn(nodes[1:])
    order = a.look()
    assert order and order.stop and order.failed and "quarantined" in order.reason
    assert a.node_id not in world.coordinator.leases.by_node
    for call in (
        a.poll,
        a.join,
        lambda: world.ask(msg.Leave(a.node_id, 1)),
    ):
        with pytest.raises(Forbidden, match=r"quarantined .*router_round/0/1"):
            call()
    world.restart()
    with pytest.raises(Forbidden, match="ask the organiser"):
        a.join()


def test_what_a_quarantined_node_has_in_work_goes_to_others_at_once() -> None:
    world, nodes = audited("abcd", experts=3)
    a = nodes[0]
    a.poll()
    a.lies = True
    a.done()
    assert a.look() and a.unit and a.unit.unit_id == "router_round/1/1"
    for _ in range(6):
        turn(nodes[1:])
        a.beat() if not quarantined(world) else None
    assert [e.node_id for e in quarantined(world)] == [a.node_id]
    assert a.node_id not in world.coordinator.leases.by_node
    assert a.node_id not in world.coordinator.leases.present
    with pytest.raises(Forbidden):
        a.beat()
    drive(world, nodes[1:])
    assert all_honest(world)


def test_a_lying_accuser_is_put_out_and_the_honest_result_stays() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    nodes[0].done()
    liar = auditor_of(nodes, "router_round/0/1")
    liar.says = "it is bad, says a liar"
    liar.done()
    drive(world, nodes)
    assert [e.node_id for e in quarantined(world)] == [liar.node_id]
    assert "its opinion on router_round/0/1 is wrong" in quarantined(world)[0].reason
    assert "router_round/0/1" not in [e.unit_id for e in events_of(world, UnitRejected)]
    assert verdicts(world)["router_round/0/1"] == "good"
    assert all_honest(world)
    sound(world)


def test_what_rested_on_a_liar_s_word_alone_is_looked_at_again() -> None:
    world, nodes = audited("abcd", experts=3)
    turn(nodes)
    nodes[0].lies = True
    nodes[0].done()
    friend = auditor_of(nodes, "router_round/0/1")
    friend.says = "it is fine"
    friend.done()
    assert verdicts(world)["router_round/0/1"] == "good"  # so it seems
    drive(world, nodes, limit=200)
    assert {e.node_id for e in quarantined(world)} == {nodes[0].node_id, friend.node_id}
    worker, auditor = quarantined(world)
    assert "router 0 since round 1" in worker.tainted  # their one success
    (voided,) = auditor.undone
    assert voided.startswith("audit/1/router_round/")
    givers = [e.node_id for e in events_of(world, UnitAccepted) if e.unit_id == voided]
    assert len(givers) == 2 and givers[0] == friend.node_id != givers[1]
    sound(world)


def test_results_of_this_round_fall_with_their_node_but_those_that_were_found_good() -> None:
    world, nodes = audited("abcdef", experts=4, audit={"first_units": 1})
    a, others = nodes[0], nodes[1:]
    a.poll()
    a.done()  # router 0, honestly; and it takes more
    auditor = others[0]
    auditor.poll()
    while auditor.unit and auditor.unit.key.kind is not UnitKind.AUDIT:
        auditor.done()
        auditor.look()
    auditor.done()
    assert verdicts(world).get("router_round/0/1") == "good"
    a.look()
    assert a.unit
    unlooked = a.unit.unit_id
    a.done()  # one that nobody looks at
    assert unlooked in world.coordinator.state.finished
    world.coordinator._exclusion.quarantine(a.node_id, "found out", world.now)
    world._settle(world.coordinator.tick(world.now))
    (event,) = quarantined(world)
    assert unlooked in event.undone
    assert "router_round/0/1" not in event.undone
    assert unlooked not in world.coordinator.state.finished
    sound(world)


def test_what_was_made_of_a_liar_s_work_before_is_named() -> None:
    world, nodes = audited("abcd", rounds=5, audit={"first_units": 1})
    for _ in range(100):
        if world.coordinator.state.round == 5:
            break
        turn(nodes)
        world.advance(1.0)
    owner = world.coordinator.state.finished["router_round/0/4"].node_id
    world.coordinator._exclusion.quarantine(owner, "found out", world.now)
    world._settle(world.coordinator.tick(world.now))
    (event,) = quarantined(world)
    assert "router 0 since round 1" in event.tainted
    assert "divisions of rounds 2-5" in event.tainted
    drive(world, nodes)
    assert world.coordinator.state.phase is Phase.FINISHED


def test_the_named_ranges_are_few_however_long_the_run() -> None:
    assert ranges([2, 5, 6, 7, 9]) == "2, 5-7, 9"
    assert ranges(range(0, 1000, 2)).endswith("and 488 more")


def test_a_readmitted_node_works_again_as_a_newcomer() -> None:
    world, nodes = audited("abcd", rounds=6)
    nodes[0].lies = True
    while not quarantined(world):
        turn(nodes)
        world.advance(1.0)
    a = nodes[0]
    assert world.answer(msg.Readmit(a.node_id)).reason.endswith("as a newcomer")
    assert "not quarantined" in world.answer(msg.Readmit(a.node_id)).reason
    a.lies, a.stopped, a.unit, a.incarnation = False, "", None, 2
    a.join().poll()
    before = len(opened(world))
    drive(world, nodes)
    mine = {e.unit_id for e in events_of(world, UnitAccepted) if e.node_id == a.node_id}
    assert [e for e in opened(world)[before:] if e.unit_id in mine]
    with pytest.raises(Refused, match="no node is called"):
        world.ask(msg.Readmit("n-nobody"))
    world.ask(msg.Revoke(a.node_id))
    with pytest.raises(Refused, match="for good"):
        world.ask(msg.Readmit(a.node_id))
    sound(world)


def test_a_run_whose_nodes_are_all_out_waits() -> None:
    world, nodes = audited("ab")
    turn(nodes)
    for node in nodes:
        world.coordinator._exclusion.quarantine(node.node_id, "found out", world.now)
    world._settle(world.coordinator.tick(world.now))
    assert world.coordinator.state.joined == 0
    world.advance(1000.0)
    assert world.coordinator.state.phase is Phase.ROUTING
    fresh = FakeNode(world, "c").enrol().join()
    drive(world, [fresh])
    assert world.coordinator.state.phase is Phase.FINISHED


def test_collected_weights_of_a_quarantined_node_and_what_is_built_on_them_are_dropped() -> None:
    world, nodes = audited("abcd", experts=1, expert={"steps": 900, "collect": "every 100 steps"})
    reach(world, nodes, Phase.TRAINING)
    worker = next(n for n in nodes if n.look() and n.unit)
    liar = worker
    liar.beat(0.2, collected=liar.state_at(200))
    world.ask(msg.Leave(liar.node_id, 1))
    liar.unit, liar.question = None, 0
    world.advance(250.0)
    rest = [n for n in nodes if n is not liar]
    for node in rest:
        node.look()
        if node.question in world.answers:
            node.poll()
    heir = next(n for n in rest if n.unit)
    assert heir.unit and heir.unit.start_step == 200
    state = heir.state_at(300)
    heir.beat(0.3, collected=state)
    world.coordinator._exclusion.quarantine(liar.node_id, "found out", world.now)
    world._settle(world.coordinator.tick(world.now))
    assert "train_expert/0" in quarantined(world)[0].undone
    assert not world.coordinator.state.collected
    assert state.outputs[0].digest in world.released
    order = heir.beat(0.35)
    assert order and order.cancel == "train_expert/0"
    heir.unit = None
    drive(world, nodes)
    final = world.coordinator.state.finished["train_expert/0"]
    assert final.figures["from_step"] == 0.0
    sound(world)


@pytest.mark.parametrize("liars", ["a", "ab"])
def test_liars_in_every_phase_change_nothing_of_what_counts(liars: str) -> None:
    world, nodes = audited("abcdefg", experts=3, rounds=3, audit={"rate": 1.0})
    for _ in range(300):
        state = world.coordinator.state
        if state.phase is Phase.FINISHED:
            break
        for node in nodes:
            node.lies = node.name in liars and len(world.journal) % 3 == 0
            node.says = "it is bad" if node.lies and node.name == "b" else "what is true"
        with contextlib.suppress(Forbidden):
            turn(nodes)
        world.advance(1.0)
    assert world.coordinator.state.phase is Phase.FINISHED
    assert all_honest(world)
    assert {e.node_id for e in quarantined(world)} <= {
        node.node_id for node in nodes if node.name in liars
    }
    sound(world)
