"""Routers' rounds that are trained again to check them: how many, which, and what it may cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audit_world import (
    NEVER_BY_CHANCE,
    audited,
    auditor_of,
    drive,
    opened,
    quarantined,
    turn,
)
from support.core_rules import sound
from support.core_world import make_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.redos import may_redo, planned_work, redo_part, redo_work
from smalltalk_fed.core.state import HardState

ROUND = "router_round/0/1"


EXPERT = {"steps": 200}  # large next to the routers


def paid(part: float, rounds: int = 2, **audit: Any) -> dict[str, Any]:
    """A run of so many rounds that pays for training this part of them again."""
    audit = {"rate": NEVER_BY_CHANCE, "sample_sequences": 4} | audit
    run = {"rounds": rounds, "expert": EXPERT}
    manifest = make_manifest(**run, audit=audit)
    everything = manifest.experts * rounds * redo_work(manifest)
    share = min(1.0, part * everything / planned_work(manifest))
    return run | {"audit": audit | {"redo_share": share}}


def naive_work(manifest: RunManifest) -> float:
    """Unit by unit, token by token: parameters times forward passes."""
    config, vocabulary = manifest.config, manifest.vocabulary
    router, expert = (
        shape.parameters(vocabulary) for shape in (config.router.model, config.expert.model)
    )
    total = 0.0
    for _ in range(config.router.rounds):
        for _ in range(manifest.experts):
            share = config.router.chunk_sequences / manifest.experts
            total += 3 * share * config.sequence.prefix * router
            total += config.router.chunk_sequences * config.sequence.prefix * router
    for _ in range(manifest.train_sequences):
        total += manifest.experts * config.sequence.prefix * router
    for _ in range(manifest.experts * config.expert.steps):
        total += 3 * config.expert.batch_sequences * config.sequence.length * expert
    return total


@pytest.mark.parametrize(("experts", "rounds"), [(1, 1), (2, 5), (4, 3)])
def test_planned_work_is_that_of_all_units(experts: int, rounds: int) -> None:
    manifest = make_manifest(experts=experts, rounds=rounds)
    assert planned_work(manifest) == pytest.approx(naive_work(manifest))


def test_one_costs_its_share_s_training_and_its_sample() -> None:
    manifest = make_manifest(audit={"rate": 0.1, "sample_sequences": 4})
    router = manifest.config.router.model.parameters(manifest.vocabulary)
    assert redo_work(manifest) == (3 * 5 + 9 * 4) * 8 * router


def test_what_a_run_with_large_experts_pays_for_is_every_round() -> None:
    expert = {"model": "1.3b", "steps": 1000}
    assert redo_part(make_manifest(audit={"rate": 0.1}, expert=expert)) == 1.0
    assert redo_part(make_manifest(audit={"rate": 0.0}, expert=expert)) == 0.0
    assert redo_part(make_manifest(audit={"rate": 0.1, "redo_share": 0.0}, expert=expert)) == 0.0


@settings(max_examples=25, deadline=None)
@given(
    part=st.floats(0.0, 1.2),
    rounds=st.integers(1, 12),
    first_units=st.sampled_from([0, 2, 40]),
    rate=st.sampled_from([NEVER_BY_CHANCE, 0.3, 1.0]),
)
def test_no_more_rounds_are_redone_than_the_plan_pays_for(
    part: float, rounds: int, first_units: int, rate: float
) -> None:
    world, nodes = audited("abc", **paid(part, rounds, rate=rate, first_units=first_units))
    drive(world, nodes, 400)
    redone = [event for event in opened(world) if event.redo]
    paid_for = redo_part(world.manifest) * world.manifest.experts * rounds
    assert len(redone) <= paid_for + 1e-9
    assert all(event.unit_id.startswith("router_round") for event in redone)
    assert world.coordinator.state.redos == len(redone)
    if first_units == 40 and part >= 1.0:
        assert len(redone) == world.manifest.experts * rounds
    sound(world)


def test_rounds_are_drawn_as_often_as_the_plan_pays_for_though_the_rate_is_smaller() -> None:
    world, nodes = audited("abc", **paid(0.5, 40, first_units=0))
    drive(world, nodes, 400)
    routers = [event for event in opened(world) if event.unit_id.startswith("router_round")]
    assert 0.35 * 80 < len(routers) <= 0.5 * 80
    assert all(event.redo and event.reason == "drawn by chance" for event in routers)


def test_newcomers_come_first_and_are_only_looked_at_once_nothing_is_left() -> None:
    world, nodes = audited("abc", **paid(0.25, 8, first_units=20))
    drive(world, nodes, 400)
    routers = [event for event in opened(world) if event.unit_id.startswith("router_round")]
    assert len(routers) == 16
    redone = [event.unit_id for event in routers if event.redo]
    assert {ROUND, "router_round/1/1"} <= set(redone)
    assert len(redone) == 4


def test_who_is_asked_for_it_is_told_to_train_the_round_again() -> None:
    world, nodes = audited("abcd", **paid(1.0))
    turn(nodes)
    nodes[0].done()
    unit = auditor_of(nodes, ROUND).unit
    assert unit and unit.redo
    assert [ref.name for ref in unit.inputs] == ["parameters", "share"]
    drive(world, nodes)
    units = [order.unit for order in world.answers.values() if isinstance(order, msg.Order)]
    redone = {unit.key.target for unit in units if unit and unit.redo}
    assert redone == {f"router_round/{e}/{r}" for e in (0, 1) for r in (1, 2)}


def doubted_round():
    """A run that pays for nothing; the only opinion on a round is a doubt."""
    world, nodes = audited("abcde")
    turn(nodes)
    world.do_jobs = False
    nodes[0].done()
    first = auditor_of(nodes, ROUND)
    assert first.unit and not first.unit.redo
    first.done()
    settle(world, "open", redo=True)
    return world, nodes


def settle(world, verdict: str, *, redo: bool = False, wrong: tuple[str, ...] = ()) -> None:
    job = world.jobs.pop(0)
    outcome = jmsg.Judged(job.job_id, verdict, "it gained too little", {}, wrong, redo)
    world._settle(world.coordinator.job_done(outcome, world.now))


def test_a_round_that_is_doubted_is_trained_again_whatever_was_paid_for() -> None:
    world, nodes = doubted_round()
    state = world.coordinator.state
    assert not may_redo(state)
    assert (state.audits[ROUND].redo_from, state.redos) == (2, 1)
    assert quarantined(world) == []
    second = auditor_of(nodes, ROUND)
    assert second.unit and second.unit.redo
    second.done()
    (job,) = world.jobs
    assert isinstance(job, jmsg.JudgeJob)
    assert (job.redo_from, len(job.opinions)) == (2, 2)
    settle(world, "open")  # one that did it says the same; nobody is out
    assert quarantined(world) == []
    third = auditor_of(nodes, ROUND)
    assert third.unit and third.unit.redo  # also without being told so again
    assert state.redos == 2
    sound(world)
    third.done()
    settle(world, "bad")
    assert [event.node_id for event in quarantined(world)] == [nodes[0].node_id]
    sound(world)


def test_what_doubts_cost_is_paid_by_later_rounds() -> None:
    state = HardState(make_manifest(**paid(0.5, 8)))
    assert may_redo(state)
    state.redos = 1
    assert may_redo(state)
    state.redos = 2  # a round's worth ahead, and no round has begun
    assert not may_redo(state)


def test_a_restarted_coordinator_knows_what_was_spent() -> None:
    world, nodes = doubted_round()
    world.restart()
    assert world.coordinator.state.redos == 1
    assert world.coordinator.state.audits[ROUND].redo_from == 2
    for node in nodes:
        node.question, node.unit = 0, None
        node.join()
    world.advance(25.0)
    turn(nodes)
    unit = auditor_of(nodes, ROUND).unit
    assert unit and unit.redo
