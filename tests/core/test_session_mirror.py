"""The node's session and the coordinator, two machines against each other, no sockets."""

from __future__ import annotations

import pytest
from support.core_world import FakeNode, World, blob, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import outputs_of
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.session import RETRY_LAST_S, Session, answer_timeout_s
from smalltalk_fed.core.units import Result, Unit, UnitKey


def unit(unit_id: str) -> Unit:
    return Unit(UnitKey.parse(unit_id))


def order(**fields: object) -> msg.Order:
    return msg.Order("because", **fields)  # type: ignore[arg-type]


def at_work() -> Session:
    session = Session("n-1", 1)
    session.tick(0.0)
    todo = session.handle(order(unit=unit("shard/0"), heartbeat_s=5.0), 0.0)
    assert todo.start == unit("shard/0")
    return session


def test_it_asks_for_work_first_and_one_question_at_a_time() -> None:
    session = Session("n-1", 1)
    said = session.tick(0.0).say
    assert said == msg.Exchange("n-1", 1)
    assert session.tick(100.0).say is None
    assert session.deadline() is None


def test_a_unit_in_work_is_said_every_heartbeat() -> None:
    session = at_work()
    session.progress(0.25, {"loss": 3.0})
    assert session.deadline() == 5.0
    assert session.tick(4.9).say is None
    said = session.tick(5.0).say
    assert said
    assert said.working == msg.Working("shard/0", 0.25, {"loss": 3.0})
    assert not said.wants_work


def test_a_coordinator_that_was_asked_too_often_is_given_the_time_that_it_wants() -> None:
    session = at_work()
    session.finish(Result("shard/0"), 7.0)
    session.tick(7.0)
    assert session.lost(7.0, jitter=0.0, at_least_s=40.0) == 40.0
    assert session.tick(46.9).say is None
    assert session.tick(47.0).say


def test_a_result_is_said_again_until_it_is_answered() -> None:
    session = at_work()
    session.finish(Result("shard/0"), 7.0)
    first = session.tick(7.0).say
    wait_s = session.lost(7.0, jitter=1.0)
    again = session.tick(7.0 + wait_s).say
    assert first == again
    assert again
    assert again.finished == Result("shard/0")
    session.handle(order(accepted="shard/0"), 9.0)
    assert session.unit is None
    said = session.tick(9.0).say
    assert said
    assert said.finished is None


def test_tries_come_slower_up_to_a_minute() -> None:
    session = Session("n-1", 1)
    waits, now = [], 0.0
    for _ in range(2000):  # more than a day without an answer
        session.tick(now)
        waits.append(session.lost(now, jitter=1.0))
        now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == RETRY_LAST_S


def test_whoever_joined_anew_says_it_again_at_once() -> None:
    session, now = at_work(), 5.0
    session.finish(Result("shard/0"), now)
    for _ in range(6):
        question = session.tick(now).say
        now += session.lost(now, jitter=1.0)
    session.tick(now)
    session.joined(now)
    assert session.tick(now).say == question
    assert session.lost(now, jitter=1.0) < 1  # and not more slowly than whoever was never lost


def test_a_node_at_work_is_heard_of_again_within_a_heartbeat_of_a_restart() -> None:
    session = at_work()
    session.tick(5.0)
    session.handle(order(heartbeat_s=3.0), 5.0)
    now = 8.0
    for _ in range(9):
        session.tick(now)
        wait_s = session.lost(now, jitter=1.0)
        now += wait_s
    assert wait_s == 3.0


@pytest.mark.parametrize("lease_s", [20.0, 60.0, 120.0, 900.0])
def test_a_heartbeat_that_got_lost_is_said_again_before_the_lease_ends(lease_s: float) -> None:
    run = make_manifest(lease_s=lease_s).config.run
    session = at_work()
    session._heartbeat_s = lease_s / 4
    beat = session.tick(5.0).say
    assert beat
    lost_at = 5.0 + answer_timeout_s(beat, run)
    again_at = lost_at + session.lost(lost_at, jitter=1.0)
    assert again_at < 5.0 + 0.75 * lease_s  # the one before came a quarter earlier, and counted


def test_a_question_for_work_is_waited_for_longer_than_it_is_held() -> None:
    run = make_manifest(poll_s=300.0).config.run
    assert answer_timeout_s(msg.Exchange("n-1", 1), run) > 300.0


def test_a_cancelled_unit_is_dropped() -> None:
    session = at_work()
    session.tick(5.0)
    assert session.handle(order(cancel="shard/0"), 5.0).drop == "shard/0"
    assert session.unit is None


def test_a_refused_result_is_reported_as_a_failure_once() -> None:
    session = at_work()
    session.finish(Result("shard/0"), 1.0)
    session.tick(1.0)
    session.refused("NaN", 1.0)
    said = session.tick(1.0).say
    assert said
    assert said.failed == msg.Failure("shard/0", "result refused: NaN")
    session.refused("not part of the phase", 1.0)
    said = session.tick(1.0).say
    assert said == msg.Exchange("n-1", 1)


def test_stop_ends_the_session_and_the_unit() -> None:
    session = at_work()
    session.tick(5.0)
    todo = session.handle(order(stop=True), 5.0)
    assert todo.end == "because"
    assert todo.drop == "shard/0"
    assert session.tick(100.0).say is None


def test_a_run_that_failed_is_told_from_one_that_is_done() -> None:
    session = at_work()
    session.tick(5.0)
    assert session.handle(order(stop=True, failed=True), 5.0).failed


def drive(world: World, nodes: dict[str, Session], lose: frozenset[int] = frozenset()) -> int:
    """Run sessions against the coordinator; answers to the numbered exchanges are lost."""
    exchanges, asked = 0, dict[str, int]()
    for _ in range(2000):
        for name, session in nodes.items():
            if name in asked and asked[name] in world.answers:
                answer = world.answers[asked.pop(name)]
                assert isinstance(answer, msg.Order)
                exchanges += 1
                if exchanges in lose:
                    session.lost(world.now, jitter=0.5)
                else:
                    session.handle(answer, world.now)
            if session.unit and session._result is None:
                names = outputs_of(world.manifest, session.unit.key)
                outputs = tuple(blob(n, f"{session.unit.unit_id}/{n}") for n in names)
                figures = dict.fromkeys(
                    ("suffix_nll", "suffix_tokens", "prefix_nll", "prefix_tokens"), 1.0
                )
                session.finish(Result(session.unit.unit_id, outputs, figures), world.now)
            said = session.tick(world.now).say
            if said:
                asked[name] = world.ask(said)
        if all(session.ended for session in nodes.values()):
            return exchanges
        world.advance(0.1)
    raise AssertionError(f"the run did not end: {world.coordinator.state.phase}")


def test_sessions_and_coordinator_finish_a_run_whatever_answers_are_lost() -> None:
    for lost in range(1, 20):
        world = World(make_manifest())
        nodes = {}
        for name in "abc":
            node = FakeNode(world, name).enrol().join()
            nodes[name] = Session(node.node_id, 1)
        drive(world, nodes, frozenset({lost, lost + 3}))
        assert world.coordinator.state.phase is Phase.FINISHED
