"""Who may enter; and: the state is the fold of the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from support.core_world import CORPUS, FakeNode, World, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import Event, from_json, to_json
from smalltalk_fed.core.phases import Phase, Trigger, allowed, mermaid, next_phase
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.errors import (
    Forbidden,
    Malformed,
    OurError,
    PeerError,
    Refused,
    Unauthenticated,
    WorldError,
)

Nodes = Callable[[str], FakeNode]
SECRET = hashlib.sha256(b"secret").hexdigest()


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def invited(world: World) -> World:
    world.ask(msg.MakeInvite(SECRET, world.now + 60, uses=1))
    return world


def test_a_token_lets_one_machine_in_and_the_same_one_again(invited: World) -> None:
    first = invited.answer(msg.Enrol(SECRET, key("a"), "a"))
    again = invited.answer(msg.Enrol(SECRET, key("a"), "a"))  # its first answer got lost
    assert first == again
    with pytest.raises(Unauthenticated, match="has been used"):
        invited.ask(msg.Enrol(SECRET, key("b"), "b"))


def test_an_invitation_said_again_does_not_forget_who_used_it(invited: World) -> None:
    enrolled = invited.answer(msg.Enrol(SECRET, key("a"), "a"))
    events = list(invited.journal)
    invited.ask(msg.MakeInvite(SECRET, invited.now + 60, uses=1))  # its first answer got lost
    assert invited.journal == events
    assert invited.answer(msg.Enrol(SECRET, key("a"), "a")) == enrolled
    with pytest.raises(Unauthenticated, match="has been used"):
        invited.ask(msg.Enrol(SECRET, key("b"), "b"))


def test_an_expired_token_lets_nobody_in(invited: World) -> None:
    invited.advance(61)
    with pytest.raises(Unauthenticated, match="expired"):
        invited.ask(msg.Enrol(SECRET, key("a"), "a"))


def test_a_cancelled_token_lets_nobody_in(invited: World) -> None:
    invited.ask(msg.CancelInvite(SECRET[:8]))
    with pytest.raises(Unauthenticated, match="cancelled"):
        invited.ask(msg.Enrol(SECRET, key("a"), "a"))


def test_an_unknown_token_lets_nobody_in(world: World) -> None:
    with pytest.raises(Unauthenticated, match="was not made by this run"):
        world.ask(msg.Enrol(SECRET, key("a"), "a"))


def test_a_revoked_node_is_told_why_and_its_unit_goes_elsewhere(world: World, node: Nodes) -> None:
    a, b = node("a"), node("b")
    a.poll()
    lost = a.unit
    b.poll()
    b.done()
    world.ask(msg.Revoke(a.node_id, "it lies"))
    b.look()
    assert b.unit == lost
    with pytest.raises(Forbidden, match="it lies"):
        a.poll()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"protocol_version": 9}, Refused, "protocol version 9"),
        ({"signing_key": b"short"}, Malformed, "32 bytes"),
        ({"capabilities": msg.Capabilities(corpus_digest="e" * 64)}, Refused, "corpus"),
        ({"node_id": "n-stranger"}, Unauthenticated, "not enrolled"),
    ],
)
def test_a_join_that_does_not_fit_is_refused_with_the_reason(
    world: World, change: dict[str, object], error: type[Exception], says: str
) -> None:
    a = FakeNode(world, "a").enrol()
    fields: dict[str, object] = {
        "node_id": a.node_id,
        "incarnation": 1,
        "protocol_version": 1,
        "signing_key": b"k" * 32,
        "capabilities": msg.Capabilities(corpus_digest=CORPUS),
    }
    events = list(world.journal)
    with pytest.raises(error, match=says):
        world.ask(msg.Join(**{**fields, **change}))  # type: ignore[arg-type]
    assert world.journal == events


def test_an_older_process_of_a_node_is_refused(world: World, node: Nodes) -> None:
    a = node("a")
    newer = FakeNode(world, "a", incarnation=2, node_id=a.node_id).join()
    newer.poll()
    with pytest.raises(Refused, match="newer process"):
        a.poll()


def test_a_node_that_restarts_gives_its_old_unit_up(world: World, node: Nodes) -> None:
    a = node("a")
    a.poll()
    newer = FakeNode(world, "a", incarnation=2, node_id=a.node_id).join()
    newer.poll()
    assert newer.unit
    assert newer.unit.unit_id == "router_round/0/1"


# ------------------------------------------------------------------------------------ replay


def test_hard_state_equals_the_replay_of_the_journal_at_every_event() -> None:
    world = World(make_manifest(expert={"init": "seed"}))
    nodes = [FakeNode(world, name).enrol().join() for name in "ab"]
    for node in nodes:
        node.poll()
    while not all(node.stopped for node in nodes):
        for node in nodes:
            node.look()
            if node.unit:
                node.done()
        replayed = World(world.manifest)
        for event in world.journal:
            replayed.coordinator.apply(from_json(*to_json(event)))
        assert replayed.coordinator.state == world.coordinator.state


def test_after_a_restart_nothing_is_leased_anew_for_one_lease_time(
    world: World, node: Nodes
) -> None:
    a, b = node("a"), node("b")
    a.poll()
    assert a.unit
    world.restart()
    b.join()
    assert b.poll() is None
    a.join()
    a.beat()  # it still works on its unit, says so, and keeps it
    assert world.coordinator.leases.by_node[a.node_id].key == a.unit.key
    world.advance(19.0)
    if b.question in world.answers:
        b.poll()
    a.beat()
    assert b.unit is None
    world.advance(1.5)
    b.look()
    assert b.unit
    assert b.unit.unit_id == "router_round/1/1"


def test_a_job_that_a_crash_lost_is_asked_for_again(world: World, node: Nodes) -> None:
    world.do_jobs = False
    node("a")
    assert [job.job_id for job in world.jobs] == ["assign/1"]
    world.jobs.clear()
    world.restart()
    assert [job.job_id for job in world.jobs] == ["assign/1"]


def test_a_node_must_join_again_after_a_restart(world: World, node: Nodes) -> None:
    a = node("a")
    world.restart()
    with pytest.raises(Refused, match="join again"):
        a.poll()


def test_an_event_of_a_newer_version_is_an_error_and_never_skipped() -> None:
    with pytest.raises(WorldError, match="newer version"):
        from_json("NodePromoted", '{"at": 1.0}')
    with pytest.raises(WorldError, match="newer version"):
        from_json("NodeRevoked", '{"at": 1.0, "node_id": "a", "reason": "b", "colour": 1}')


def test_events_survive_the_journal(world: World, node: Nodes) -> None:
    a = node("a")
    a.poll()
    a.done()
    events: list[Event] = [from_json(*to_json(event)) for event in world.journal]
    assert events == world.journal


# ------------------------------------------------------------------------------------- words


def test_phases_follow_the_table_and_nothing_else() -> None:
    assert next_phase(Phase.RECRUITING, Trigger.ENOUGH_NODES) is Phase.ROUTING
    assert next_phase(Phase.PAUSED, Trigger.RESUME, Phase.TRAINING) is Phase.TRAINING
    assert not allowed(Phase.FINISHED, Trigger.PAUSE)
    with pytest.raises(OurError):
        next_phase(Phase.RECRUITING, Trigger.EVALUATED)


def test_the_diagram_has_every_phase() -> None:
    assert all(phase.value in mermaid() for phase in Phase)


@pytest.mark.parametrize(
    "text",
    ["router_round/1/2", "shard/0", "shard/heldout", "train_seed", "train_expert/3", "evaluate/0",
     "silo_block/2/7", "count/2/7/0", "evaluate_silo/2"],
)  # fmt: skip
def test_unit_ids_round_trip(text: str) -> None:
    assert UnitKey.parse(text).unit_id == text


@pytest.mark.parametrize("text", ["", "shard", "shard/01", "shard/-2x", "evaluate/a",
                                  "a/b/c/d", "count/1/2", "silo_block/1/02"])  # fmt: skip
def test_what_is_no_unit_id_is_refused(text: str) -> None:
    with pytest.raises(PeerError):
        UnitKey.parse(text)


def test_who_only_asked_what_the_run_is_is_no_part_of_it_and_may_say_why() -> None:
    world = World(make_manifest())
    node = FakeNode(world, "a").enrol()
    before = list(world.journal)
    asked = msg.Join(node.node_id, 1, 1, b"k" * 32, msg.Capabilities())
    assert world.answer(asked).node_id == node.node_id
    with pytest.raises(Refused, match="has not joined"):
        world.ask(msg.Exchange(node.node_id, 1))
    left = world.answer(msg.Leave(node.node_id, 1, "it needs 9 GB"))
    assert left.released == ()
    assert world.journal == before
    assert f"node {node.node_id} takes no part: it needs 9 GB" in world.decisions
