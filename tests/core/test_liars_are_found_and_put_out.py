"""Wrong results and opinions are found; who gave them is out, what rested on them is redone."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from support.audit_world import (
    audited,
    auditor_of,
    drive,
    events_of,
    opened,
    quarantined,
    sound,
    turn,
    verdicts,
)
from support.core_world import FakeNode, World, blob, honest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import AuditSettled, UnitAccepted, UnitRejected
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.quarantine import ranges
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.units import UnitKind
from smalltalk_fed.errors import Forbidden, Refused


def all_honest(world: World) -> bool:
    """Whether what counts in the end is what it should be."""
    return all(
        accepted.outputs == honest(world.manifest, unit_id)
        for unit_id, accepted in world.coordinator.state.finished.items()
        if not unit_id.startswith("audit")
    )


def reach(world: World, nodes: list[FakeNode], phase: Phase) -> None:
    for _ in range(80):
        if world.coordinator.state.phase is phase:
            return
        turn(nodes)
        world.advance(1.0)
    raise AssertionError(f"{phase} was not reached")


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


def test_a_frozen_node_s_old_parameters_and_copied_scores_are_refused() -> None:
    _, (a, b) = audited("ab", rounds=4, audit={"first_units": 0})
    a.poll()
    b.poll()
    old, copied = a.result(), b.result()
    a.done()
    b.done()
    a.look()
    assert a.unit and a.unit.unit_id == "router_round/0/2"
    new = a.result()
    with pytest.raises(Refused, match="unchanged"):
        a.poll(finished=replace(new, outputs=(old.outputs[0], new.outputs[1])))
    for scores in (old.outputs[1], copied.outputs[1]):
        with pytest.raises(Refused, match="scores of router_round/0/2 are those of"):
            a.poll(finished=replace(new, outputs=(new.outputs[0], scores)))
    a.poll(finished=new, wants_work=False)
    order = a.poll(finished=new, wants_work=False)  # said again: it is its own
    assert order and order.accepted == "router_round/0/2"


def test_a_unit_that_others_hold_is_not_taken_from_who_never_had_it() -> None:
    world, nodes = audited("abc")
    a, _, c = nodes
    a.poll()
    c.unit = a.unit
    with pytest.raises(Refused, match="never had it"):
        c.poll(finished=c.result())
    world.restart()  # who held what is forgotten
    c.join()
    order = c.poll(finished=c.result(), wants_work=False)
    assert order and order.accepted == "router_round/0/1"


def test_failures_count_for_who_had_the_unit_alone() -> None:
    world, nodes = audited("ab")
    a, b = nodes
    a.poll()
    assert a.unit
    for _ in range(9):
        b.poll(failed=msg.Failure(a.unit.unit_id, "so that the run fails"), wants_work=False)
    assert world.coordinator.state.phase is Phase.ROUTING


def test_a_liar_can_not_have_a_blob_removed_that_another_result_names() -> None:
    world, nodes = audited("abcd")
    a, b = nodes[:2]
    a.poll()
    b.poll()
    b.done()
    stolen = world.coordinator.state.finished["router_round/1/1"].outputs[0]
    result = a.result()
    a.poll(finished=replace(result, outputs=(stolen, blob("scores", "made up"))))
    a.unit = None
    while not quarantined(world):
        turn(nodes)
        world.advance(1.0)
    assert stolen.digest not in world.released
    assert stolen.digest in needed_blobs(world.coordinator.state)


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
