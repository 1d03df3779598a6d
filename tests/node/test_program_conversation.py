"""A node and a coordinator that plays a script: silence, restarts, refusals, and how it ends."""

from __future__ import annotations

import logging
import threading

import grpc
import pytest
from smalltalk_node.program import Program
from support.loopback_coordinator import refusing
from support.node_stage import STOP, Answer, Stage, ids
from support.tiny_run import tiny_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import Refused
from smalltalk_fed.wire import convert


def test_a_node_at_work_says_so_and_a_unit_that_is_dropped_goes_on_when_it_comes_again(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "smalltalk_fed.train.checkpoint")
    stage.script(manifest=tiny_manifest(stage.corpus, expert={"steps": 20_000}))
    unit = stage.unit("train_expert/0", segment=ids(40))
    do_this = msg.Order("do this", unit=unit, heartbeat_s=0.02)
    steps: list[float] = []  # before it was dropped, and after

    def exchange(question: msg.Exchange) -> msg.Order:
        if question.working is None:
            assert question.wants_work
            return STOP if len(steps) == 2 else do_this
        assert not question.wants_work
        assert question.working.unit_id == unit.unit_id
        step = question.working.figures.get("step", 0.0)
        if step > sum(steps):
            steps.append(step)
            return msg.Order("the run is paused", cancel=unit.unit_id)
        return msg.Order("carry on", heartbeat_s=0.02)

    stage.loopback.behaviour.exchange = exchange
    assert stage.program().run() == STOP.reason
    assert not any(question.finished or question.failed for question in stage.loopback.exchanges)
    # It was stopped at a step, left a checkpoint there, and did not begin anew.
    went_on = [r.getMessage() for r in caplog.records if "going on from" in r.getMessage()]
    assert len(went_on) == 1
    assert int(went_on[0].rpartition("step-")[2]) >= steps[0] > 0
    # The run is finished, so that nobody needs the checkpoint any more.
    assert not (stage.folder.path / "work" / "run-1" / "train_expert-0").exists()


def test_a_coordinator_that_is_not_there_yet_is_waited_for(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.script(STOP)
    absent = iter([True, True, True, False, False])

    def join(join: msg.Join) -> convert.Welcome:
        if next(absent):
            raise refusing(grpc.StatusCode.UNAVAILABLE, "starting")
        return stage.welcome(join)

    stage.loopback.behaviour.join = join
    assert stage.program().run() == STOP.reason
    assert (len(stage.loopback.looks), len(stage.loopback.joins)) == (4, 1)
    said = [r.message for r in caplog.records if "no coordinator answers" in r.message]
    assert len(said) == 1  # once in a while, not at every try


def test_a_question_without_an_answer_is_asked_again(stage: Stage) -> None:
    silent = refusing(grpc.StatusCode.UNAVAILABLE, "restarting")
    assert stage.play(silent, silent, STOP) == STOP.reason
    assert stage.loopback.exchanges[0] == stage.loopback.exchanges[2]


def test_a_restarted_coordinator_is_joined_again_and_the_unit_kept(stage: Stage) -> None:
    unit = stage.unit("router_round/0/1", share=ids())
    unknown = refusing(grpc.StatusCode.FAILED_PRECONDITION, "n-1 has not joined; join again")
    accepted = msg.Order("taken", accepted=unit.unit_id, stop=True)
    stage.play(msg.Order("do this", unit=unit), unknown, accepted)
    assert len(stage.loopback.joins) == 2
    first, second = stage.loopback.joins
    assert (first.incarnation, first.signing_key) == (second.incarnation, second.signing_key)
    _, refused, again = stage.loopback.exchanges
    assert refused == again
    assert again.finished is not None


def test_a_coordinator_that_dies_again_before_it_answers_is_joined_again(stage: Stage) -> None:
    unit = stage.unit("router_round/0/1", share=ids())
    unknown = refusing(grpc.StatusCode.FAILED_PRECONDITION, "n-1 has not joined; join again")
    silent = refusing(grpc.StatusCode.UNAVAILABLE, "restarting")
    accepted = msg.Order("taken", accepted=unit.unit_id, stop=True)
    stage.play(msg.Order("do this", unit=unit), unknown, silent, unknown, accepted)
    assert len(stage.loopback.joins) == 3
    assert stage.loopback.exchanges[-1].finished is not None


def test_a_result_that_is_refused_twice_becomes_a_failure(stage: Stage) -> None:
    unit = stage.unit("router_round/0/1", share=ids())
    refusal = refusing(grpc.StatusCode.FAILED_PRECONDITION, "no better than before")
    stage.play(msg.Order("do this", unit=unit), refusal, refusal, STOP)
    failed = stage.loopback.exchanges[-1].failed
    assert failed is not None
    assert failed.reason == "result refused: no better than before"


def test_a_node_that_is_shut_out_ends_with_the_reason(stage: Stage) -> None:
    refusal = refusing(grpc.StatusCode.FAILED_PRECONDITION, "a newer process of n-1 is running")
    with pytest.raises(Refused, match="newer process"):
        stage.play(refusal, refusal)
    assert stage.status()["reason"] == "a newer process of n-1 is running"


def test_stopping_during_a_long_poll_says_goodbye(stage: Stage) -> None:
    asked = threading.Event()

    def held(question: msg.Exchange) -> msg.Order:
        asked.set()
        stage.loopback.released.wait(30)
        return STOP

    stage.script(held)
    program = stage.program()
    threading.Thread(target=lambda: (asked.wait(30), program.stop()), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        program.run()
    assert [left.node_id for left in stage.loopback.left] == ["n-1"]
    assert stage.status()["state"] == "stopped"


def test_a_node_that_is_not_needed_asks_later_and_stops_at_once(stage: Stage) -> None:
    asked = threading.Event()

    def later(question: msg.Exchange) -> msg.Order:
        asked.set()
        return msg.Order("enough others wait", wait_s=3600.0)

    stage.script(later)
    program = stage.program()
    threading.Thread(target=lambda: (asked.wait(30), program.stop()), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        program.run()
    assert len(stage.loopback.exchanges) == 1
    assert len(stage.loopback.left) == 1


def test_stopping_at_work_ends_at_a_step_and_says_goodbye(stage: Stage) -> None:
    manifest = tiny_manifest(stage.corpus, expert={"steps": 20_000})
    unit = stage.unit("train_expert/0", segment=ids(40))
    program: list[Program] = []

    def at_work(question: msg.Exchange) -> msg.Order:
        if question.working and question.working.figures:
            program[0].stop()
        return msg.Order("carry on", heartbeat_s=0.02)

    orders: list[Answer] = [msg.Order("do this", unit=unit, heartbeat_s=0.02)]
    stage.script(*orders, *[at_work] * 10_000, manifest=manifest)
    program.append(stage.program())
    with pytest.raises(KeyboardInterrupt):
        program[0].run()
    assert len(stage.loopback.left) == 1
    assert list((stage.folder.path / "work" / "run-1" / "train_expert-0").rglob("step-*"))


def test_stopping_while_nobody_is_there_ends_at_once(stage: Stage) -> None:
    asked = threading.Event()

    def join(join: msg.Join) -> convert.Welcome:
        asked.set()
        raise refusing(grpc.StatusCode.UNAVAILABLE, "starting")

    stage.loopback.behaviour.join = join
    program = stage.program()
    threading.Thread(target=lambda: (asked.wait(30), program.stop()), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        program.run()
