"""A result counts when another node has looked at it: when, by whom, at what."""

from __future__ import annotations

import contextlib

import pytest
from support.audit_world import (
    audited,
    auditor_of,
    drive,
    events_of,
    opened,
    quarantined,
    turn,
    verdicts,
)
from support.core_rules import sound
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.draws import draw
from smalltalk_fed.core.events import AuditSettled, UnitAccepted
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import PeerError, Refused


def test_a_newcomer_s_first_results_are_looked_at_and_its_later_ones_by_chance() -> None:
    world, nodes = audited("ab", rounds=5, audit={"first_units": 2})
    drive(world, nodes)
    routers = [e.unit_id for e in opened(world) if e.unit_id.startswith("router_round")]
    assert sorted(routers) == [f"router_round/{e}/{r}" for e in (0, 1) for r in (1, 2)]
    assert set(verdicts(world).values()) == {"good"}
    sound(world)


def test_nobody_looks_at_its_own_work() -> None:
    world, nodes = audited("abc", rounds=3, audit={"rate": 1.0})
    drive(world, nodes)
    accepted = {e.unit_id: e.node_id for e in events_of(world, UnitAccepted)}
    opinions = [UnitKey.parse(unit_id) for unit_id in accepted if unit_id.startswith("audit")]
    assert len(opinions) == 3 * 2 + 3 + 2  # every round's, every slice's, every expert's
    for key in opinions:
        assert accepted[key.unit_id] != accepted[key.target]
    sound(world)


def test_a_round_is_divided_only_when_its_audits_are_settled() -> None:
    world, nodes = audited("ab")
    turn(nodes)
    turn(nodes, but="audit")
    assert all(f"router_round/{e}/1" in world.coordinator.state.finished for e in (0, 1))
    for _ in range(5):
        turn(nodes, but="audit")
        world.advance(5.0)
        for node in nodes:
            node.beat()
    assert world.coordinator.state.round == 1
    turn(nodes)
    turn(nodes)
    assert world.coordinator.state.round == 2


def test_a_lone_node_is_not_looked_at_and_does_not_become_trusted() -> None:
    world, nodes = audited("a", rounds=9)
    for _ in range(8):
        turn(nodes)
    assert not opened(world)
    nodes.append(FakeNode(world, "b").enrol().join())
    turn(nodes)
    turn(nodes)
    assert opened(world)


def test_nothing_is_looked_at_where_the_rate_is_zero() -> None:
    world, nodes = audited("abc", audit={"rate": 0.0})
    world.do_jobs = False
    for _ in range(3):
        turn(nodes)
        if world.jobs and isinstance(world.jobs[0], jmsg.AssignJob) and world.jobs[0].round == 2:
            assert world.jobs[0].checked == (0, 1)
            break
        if world.jobs:
            world.finish_job()
    world.do_jobs = True
    world.finish_job()
    drive(world, nodes)
    assert not opened(world)


def test_what_chance_draws_follows_from_the_secret_alone_and_is_as_frequent_as_configured() -> None:
    def drawn(secret: bytes) -> list[bool]:
        return [draw(secret, f"shard/{i}", "n-1", ())[0] < 0.1 for i in range(5000)]

    first = drawn(b"one")
    assert first == drawn(b"one") != drawn(b"two")
    assert 0.08 < sum(first) / len(first) < 0.12
    samples = {draw(b"one", f"shard/{i}", "n-1", ())[1] for i in range(1000)}
    assert len(samples) == 1000
    assert all(0 <= sample < 2**63 for sample in samples)


def test_a_restarted_coordinator_draws_the_same() -> None:
    def audits(*, restart: bool) -> dict[str, tuple[str, int]]:
        options = {"rate": 0.5, "first_units": 0}
        world, nodes = audited("ab", experts=1, rounds=9, audit=options)
        while world.coordinator.state.phase is Phase.ROUTING:
            if restart:
                world.restart()
                for node in nodes:
                    node.question = 0
                    node.join()
                world.advance(25.0)
            turn(nodes)
        accepted = {e.unit_id: e.node_id for e in events_of(world, UnitAccepted)}
        routers = [e for e in opened(world) if e.unit_id.startswith("router_round")]
        return {e.unit_id: (accepted[e.unit_id], e.sample) for e in routers}

    found, again = audits(restart=False), audits(restart=True)
    assert 1 < len(found) < 9
    assert found == again


def test_every_opinion_on_a_result_is_on_the_same_sample_and_is_of_another_node() -> None:
    _, nodes = audited("abcd")
    nodes[0].lies = True
    turn(nodes)
    turn(nodes[:1])  # a hands router 0 in
    seen = []
    for _ in range(2):
        auditor = auditor_of(nodes, "router_round/0/1")
        assert auditor.unit
        seen.append((auditor.node_id, auditor.unit.sample, auditor.unit.unit_id))
        auditor.done()
    (one, sample, first), (two, again, second) = seen
    assert len({one, two, nodes[0].node_id}) == 3
    assert sample == again > 0
    assert (first, second) == ("audit/1/router_round/0/1", "audit/2/router_round/0/1")


def test_who_looks_at_a_result_does_not_see_what_it_said() -> None:
    world, nodes = audited("abc", rounds=2, audit={"rate": 1.0})
    drive(world, nodes)
    orders = [answer for answer in world.answers.values() if isinstance(answer, msg.Order)]
    units = [order.unit for order in orders if order.unit]
    names = {
        u.key.target: [r.name for r in u.inputs] for u in units if u.key.kind is UnitKind.AUDIT
    }
    assert names["router_round/0/1"] == ["parameters", "share"]
    assert names["router_round/0/2"] == ["parameters", "before", "share"]
    assert names["shard/1"] == names["shard/heldout"] == ["router-0", "router-1"]
    assert sorted(names["train_expert/1"]) == [
        "config", "routed", "router-0", "router-1", "segment", "weights",
    ]  # fmt: skip


def test_every_collected_expert_is_looked_at_before_the_experts_are_done() -> None:
    world, nodes = audited("abc")
    state = world.coordinator.state
    while not {"train_expert/0", "train_expert/1"} <= set(state.finished):
        turn(nodes, but="audit/1/train_expert")
        world.advance(1.0)
    assert state.phase is Phase.TRAINING
    assert set(state.unsettled) == {"train_expert/0", "train_expert/1"}
    drive(world, nodes)
    assert verdicts(world)["train_expert/0"] == verdicts(world)["train_expert/1"] == "good"


def test_experts_that_stay_home_are_not_looked_at() -> None:
    world, nodes = audited("abc", expert={"collect": "never"})
    drive(world, nodes)
    assert not [e for e in opened(world) if e.unit_id.startswith("train_expert")]


def test_the_judge_is_told_the_sample_the_outputs_and_what_was_measured_of_others() -> None:
    world, nodes = audited("abc")
    drive(world, nodes)
    jobs = [job for job in world.asked_for if isinstance(job, jmsg.JudgeJob)]
    first, second = (job for job in jobs if job.target.key.kind is UnitKind.TRAIN_EXPERT)
    assert [ref.name for ref in first.outputs] == ["config", "weights"]
    assert first.sample > 0
    assert first.peers == {}
    expert = first.target.key.expert
    assert second.peers == {expert: {"x": 1.0}}


def test_an_auditor_that_can_not_do_it_is_replaced_and_the_run_does_not_fail_for_it() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    nodes[0].done()
    tried = []
    for _ in range(2):
        auditor = auditor_of(nodes, "router_round/0/1")
        assert auditor.unit
        tried.append(auditor.name)
        failure = msg.Failure(auditor.unit.unit_id, "out of memory")
        auditor.unit = None
        auditor.poll(failed=failure)
    assert len(set(tried)) == 2
    assert world.coordinator.state.phase is Phase.ROUTING


def test_an_audit_is_given_to_no_second_node_at_once() -> None:
    _, nodes = audited("abcd", spare_copies=3)
    turn(nodes)
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    other = next(node for node in nodes[1:] if node is not auditor)
    other.unit = auditor.unit
    order = other.beat()  # says that it is at it, too
    assert order and auditor.unit and order.cancel == auditor.unit.unit_id


def test_neither_the_worker_nor_who_spoke_before_may_give_an_opinion() -> None:
    world, nodes = audited("abcd")
    nodes[0].lies = True
    turn(nodes)
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    opinion, unit = auditor.result(), auditor.unit
    with pytest.raises(Refused, match="for other nodes"):
        nodes[0].poll(finished=opinion)
    auditor.done()  # not good: a second one is asked
    auditor.unit = auditor_of(nodes, "router_round/0/1").unit
    again = auditor.result()
    auditor.unit = unit
    with pytest.raises(Refused, match="for other nodes"):
        auditor.poll(finished=again)
    sound(world)


def test_an_opinion_that_nobody_asks_for_any_more_is_dropped_not_refused() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    lost = world.coordinator.state.finished["router_round/0/1"].outputs[0].digest
    world._settle(world.coordinator.blob_damaged(lost, "damaged", world.now))
    before = list(world.journal)
    order = auditor.beat()
    assert order and auditor.unit and order.cancel == auditor.unit.unit_id
    order = auditor.poll(finished=auditor.result(), wants_work=False)
    assert order and order.cancel == auditor.unit.unit_id and not order.accepted
    assert world.journal == before
    sound(world)


def test_a_late_opinion_on_a_result_that_was_done_again_is_not_taken_for_one_on_the_new() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    late = auditor.unit
    lost = world.coordinator.state.finished["router_round/0/1"].outputs[0].digest
    world._settle(world.coordinator.blob_damaged(lost, "damaged", world.now))
    worker = next(n for n in nodes if n.look() and n.unit and n.unit.unit_id == "router_round/0/1")
    worker.done()
    assert world.coordinator.state.audits["router_round/0/1"].number == 2
    auditor.unit = late
    order = auditor.poll(finished=auditor.result(), wants_work=False)
    assert order and not order.accepted
    assert not world.coordinator.state.audits["router_round/0/1"].opinions


def test_a_lost_opinion_is_asked_for_again() -> None:
    world, nodes = audited("abcd")
    world.do_jobs = True
    turn(nodes)
    world.do_jobs = False
    nodes[0].done()
    auditor_of(nodes, "router_round/0/1").done()
    (opinion,) = world.coordinator.state.audits["router_round/0/1"].opinions
    digest = world.coordinator.state.finished[opinion].outputs[0].digest
    assert digest in needed_blobs(world.coordinator.state)
    world._settle(world.coordinator.blob_damaged(digest, "damaged", world.now))
    assert not world.coordinator.state.to_judge
    assert UnitKey.parse(opinion) in world.coordinator.state.open
    sound(world)


def test_opinions_are_kept_until_the_audit_is_settled_and_then_let_go() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    world.do_jobs = False
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    digest = auditor.result().outputs[0].digest
    auditor.done()
    assert digest in needed_blobs(world.coordinator.state)
    world.finish_job()
    assert digest in world.released
    assert digest not in needed_blobs(world.coordinator.state)


def test_blocks_that_look_odd_wait_for_an_opinion_and_then_count() -> None:
    world, nodes = audited("abc", rounds=3, audit={"first_units": 0})
    world.odd = {"router_round/1/1": "it is all over the place"}
    turn(nodes)
    turn(nodes, but="audit")
    audits = opened(world)
    assert [e.unit_id for e in audits] == ["router_round/1/1"]
    assert "all over the place" in audits[0].reason
    assert world.coordinator.state.round == 1
    drive(world, nodes)
    assert verdicts(world)["router_round/1/1"] == "good"
    assert len(opened(world)) == 1 + 2  # and the experts'


def test_a_lone_node_s_odd_block_counts_and_is_said_to_be_waived() -> None:
    world, nodes = audited("a", rounds=2)
    world.odd = {"router_round/1/1": "it is all over the place"}
    drive(world, nodes)
    settled = events_of(world, AuditSettled)
    assert [(e.unit_id, e.verdict) for e in settled] == [("router_round/1/1", "waived")]
    assert "router_round/1/1" in world.coordinator.state.waived


def test_a_run_with_audits_goes_on_from_a_restart_after_any_event() -> None:
    def play(world: World, nodes: list[FakeNode]) -> None:
        drive(world, nodes)
        assert world.coordinator.state.phase is Phase.FINISHED

    world, nodes = audited("abcd", audit={"rate": 0.5})
    nodes[1].lies = True
    play(world, nodes)
    assert [e.node_id for e in quarantined(world)] == [nodes[1].node_id]
    for cut in range(len(world.journal)):
        again = World(make_manifest(audit={"rate": 0.5, "wait_s": 60.0}))
        again.journal = list(world.journal[:cut])
        again.now = world.now
        again.restart()
        crew = []
        for node in nodes:
            if node.node_id not in again.coordinator.state.nodes:
                continue
            back = FakeNode(again, node.name, incarnation=9, node_id=node.node_id, lies=node.lies)
            with contextlib.suppress(PeerError):
                back.join()
            crew.append(back)
        if len(crew) == len(nodes):
            again.advance(21.0)
            play(again, crew)
            sound(again)
