"""A damaged or lost blob is made again where that is possible; else the run pauses and says so."""

from __future__ import annotations

from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import UnitKey


def at(world: World, phase: Phase, rounds: int = 1) -> FakeNode:
    """A node that has brought the run this far and works on."""
    node = FakeNode(world, "a").enrol().join()
    node.poll()
    while world.coordinator.state.phase is not phase or world.coordinator.state.round < rounds:
        node.done()
        node.look()
    return node


def lose(world: World, digest: str) -> None:
    world._settle(world.coordinator.blob_damaged(digest, "blob is damaged", world.now))


def test_a_router_of_this_round_is_trained_again() -> None:
    world = World(make_manifest(rounds=3))
    node = at(world, Phase.ROUTING, 2)
    node.done()
    node.look()
    accepted = world.coordinator.state.finished["router_round/0/2"]
    lose(world, accepted.outputs[0].digest)
    assert "router_round/0/2" not in world.coordinator.state.finished
    node.done()
    node.look()
    assert node.unit and node.unit.unit_id == "router_round/0/2"
    node.done()
    assert world.coordinator.state.finished["router_round/0/2"].outputs == accepted.outputs


def test_a_division_is_computed_again_from_the_same_scores() -> None:
    world = World(make_manifest(rounds=3))
    at(world, Phase.ROUTING, 2)
    world.do_jobs = False
    assigned = world.coordinator.state.rounds[2]
    lose(world, assigned.shares[1].digest)
    job = world.jobs[0]
    assert isinstance(job, jmsg.AssignJob) and job.round == 2 and len(job.scores) == 2
    assert not {ref.digest for ref in job.scores} & set(world.released)
    world.finish_job()
    assert world.coordinator.state.rounds[2].shares == assigned.shares


def test_rounds_of_old_stay_finished_while_a_division_is_made_again() -> None:
    world = World(make_manifest(rounds=6))
    at(world, Phase.ROUTING, 4)
    world.do_jobs = False
    old = UnitKey.parse("router_round/1/1")
    assert world.coordinator.state.is_finished(old)
    lose(world, world.coordinator.state.rounds[4].shares[0].digest)
    assert world.coordinator.state.is_finished(old)


def test_segments_are_computed_again_while_experts_are_trained() -> None:
    world = World(make_manifest())
    node = at(world, Phase.TRAINING)
    world.do_jobs = False
    segments = world.coordinator.state.segments
    assert segments
    lose(world, segments.segments[0].digest)
    assert world.coordinator.state.phase is Phase.TRAINING
    assert isinstance(world.jobs[0], jmsg.SegmentsJob)
    world.finish_job()
    again = world.coordinator.state.segments
    assert again and again.segments == segments.segments
    assert node.beat()


def test_collected_weights_fall_back_to_those_before() -> None:
    world = World(make_manifest(experts=1, expert={"steps": 900, "collect": "every 100 steps"}))
    node = at(world, Phase.TRAINING)
    states = [node.state_at(step) for step in (100, 200)]
    for state in states:
        node.beat(0.1, collected=state)
    lose(world, states[1].outputs[0].digest)
    assert world.coordinator.state.collected["train_expert/0"][-1].step == 100
    lose(world, states[0].outputs[0].digest)
    assert "train_expert/0" not in world.coordinator.state.collected


def test_what_nobody_can_make_again_pauses_the_run_with_the_reason() -> None:
    world = World(make_manifest(rounds=3))
    at(world, Phase.ROUTING, 2)
    lose(world, world.coordinator.state.finished["router_round/0/1"].outputs[0].digest)
    state = world.coordinator.state
    assert state.phase is Phase.PAUSED
    assert "damaged" in state.reason and "backup" in state.reason
    world.ask(msg.Resume())
    assert state.phase is Phase.ROUTING


def test_a_blob_that_nothing_needs_is_no_loss() -> None:
    world = World(make_manifest(rounds=3))
    at(world, Phase.ROUTING, 2)
    events = list(world.journal)
    lose(world, "e" * 64)
    assert world.journal == events
