"""A whole node against a coordinator that plays a script, over real sockets."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from smalltalk_node.program import Options, Program
from support.loopback_coordinator import Loopback, refusing, serving
from support.node_stage import KEY, STOP, Answer, Stage, ids
from support.tiny_run import HELDOUT, tiny_manifest, write_tiny_corpus

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, Refused, Unauthenticated, WorldError
from smalltalk_fed.mixture.idlists import decode_experts, encode_experts, encode_ids
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.signing import verify_result
from smalltalk_fed.wire.tensors import check_weights, expected_llama_tensors
from smalltalk_fed.worksite import work

# ------------------------------------------------------------------------------------ units


def test_a_router_round_is_done_signed_and_handed_in(stage: Stage) -> None:
    unit = stage.unit("router_round/1/1", share=ids())
    said = stage.work(unit)
    result = said.finished
    assert result is not None
    assert [ref.name for ref in result.outputs] == ["parameters", "scores"]
    parameters, scores = (stage.loopback.blobs[ref.digest] for ref in result.outputs)
    shape = stage.manifest.config.router.model
    check_weights(parameters, expected_llama_tensors(shape, stage.manifest.vocabulary))
    assert len(decode_scores(scores, 40)) == 40
    key = stage.folder.signing_key().public_bytes
    verify_result(key, "run-1", "n-1", said.incarnation, unit, result)
    assert result.figures["steps"] == 2
    assert stage.loopback.joins[0].signing_key == key
    assert stage.loopback.joins[0].capabilities.corpus_digest == stage.corpus.digest
    assert stage.loopback.looks[0].incarnation == stage.loopback.joins[0].incarnation


def test_a_node_that_is_told_to_slow_down_waits_and_its_unit_is_done(stage: Stage) -> None:
    methods = ("Join", "Exchange", "BlobState", "PutBlob", "GetBlob")
    stage.loopback.behaviour.slow_down = dict.fromkeys(methods, 2)
    said = stage.work(stage.unit("router_round/1/1", share=ids()))
    assert said.finished is not None
    assert not any(stage.loopback.behaviour.slow_down.values())
    assert [bool(each.failed) for each in stage.loopback.exchanges] == [False, False]


def test_a_router_that_is_at_hand_does_not_travel_down(stage: Stage) -> None:
    first = stage.work(stage.unit("router_round/0/1", share=ids())).finished
    assert first is not None
    parameters = first.outputs[0]
    unit = Unit(
        UnitKey.parse("router_round/0/2"),
        (parameters, stage.loopback.put("share", ids(8))),
    )
    second = stage.work(unit).finished
    assert second is not None
    assert [ref.name for ref in second.outputs] == ["parameters"]  # the last round scores nothing
    rows = [row for row in stage.loopback.ledger.table() if row.kind == "parameters"]
    assert {row.direction: row.messages for row in rows} == {"up": 2, "down": 2}  # replies only
    assert stage.loopback.blobs.keys() >= {parameters.digest}


def test_slices_are_divided_and_held_out_text_is_routed(stage: Stage) -> None:
    routers = {}
    for expert in range(2):
        done = stage.work(stage.unit(f"router_round/{expert}/1", share=ids())).finished
        assert done is not None
        routers[f"router_{expert}"] = stage.loopback.blobs[done.outputs[0].digest]
    for unit_id, count in (("shard/1", 32), ("shard/heldout", HELDOUT)):
        done = stage.work(stage.unit(unit_id, **routers)).finished
        assert done is not None
        assert [ref.name for ref in done.outputs] == ["experts"]
        expert_N = decode_experts(stage.loopback.blobs[done.outputs[0].digest], count, 2)
        if unit_id == "shard/1":
            assert np.bincount(expert_N).tolist() == [16, 16]


def test_an_expert_is_trained_kept_and_evaluated_without_travelling_back(stage: Stage) -> None:
    done = stage.work(stage.unit("train_expert/1", segment=ids(40))).finished
    assert done is not None
    assert [ref.name for ref in done.outputs] == ["config", "weights"]
    kept = stage.folder.path / "experts" / "run-1" / "1"
    weights = stage.loopback.blobs[done.outputs[1].digest]
    assert (kept / "model.safetensors").read_bytes() == weights
    assert json.loads((kept / "config.json").read_bytes())["vocab_size"] == 32
    assert not (stage.folder.path / "work" / "run-1" / "train_expert-1").exists()
    before = stage.loopback.ledger.by_kind()["weights"]["down"]
    routed = stage.loopback.put("routed", encode_experts(np.arange(HELDOUT) % 2, 2))
    evaluated = stage.work(Unit(UnitKey.parse("evaluate/1"), (routed, *done.outputs))).finished
    assert evaluated is not None
    assert evaluated.outputs == ()
    assert evaluated.figures["sequences"] == HELDOUT / 2
    assert stage.loopback.ledger.by_kind()["weights"]["down"] == before


def test_an_expert_that_is_not_collected_stays(stage: Stage) -> None:
    stage.manifest = tiny_manifest(stage.corpus, expert={"collect": "never"})
    done = stage.work(stage.unit("train_expert/0", segment=ids(40))).finished
    assert done is not None
    assert done.outputs == ()
    assert stage.loopback.uploads == []
    routed = encode_experts(np.zeros(HELDOUT, dtype=int), 2)
    evaluated = stage.work(stage.unit("evaluate/0", routed=routed)).finished
    assert evaluated is not None
    assert evaluated.figures["suffix_nll"] > 0
    missing = stage.work(stage.unit("evaluate/1", routed=routed)).failed
    assert missing is not None
    assert "does not have the weights of expert 1" in missing.reason


def test_a_seed_model_goes_up_once_and_experts_start_from_it(stage: Stage) -> None:
    stage.manifest = tiny_manifest(stage.corpus, expert={"init": "seed"})
    seed = stage.work(stage.unit("train_seed")).finished
    assert seed is not None
    ref = seed.outputs[0]
    inputs = (stage.loopback.put("segment", ids(40)), BlobRef("seed", ref.digest, ref.size))
    done = stage.work(Unit(UnitKey.parse("train_expert/0"), inputs)).finished
    assert done is not None
    kinds = stage.loopback.ledger.by_kind()
    assert kinds["seed"]["up"] > ref.size
    assert kinds["seed"]["down"] < 100  # the trainer of the seed has it at hand


# --------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"share": b"rubbish"}, "input 'share'"),
        ({"share": encode_ids(np.array([10**6]))}, "ids end at 95"),
        ({"share": bytes(1000)}, "allows 384"),
        ({"share": ids(), "parameters": b"rubbish"}, "can't be read"),
        ({"share": ids(), "other": b"x"}, "allows 0"),
        ({}, "without its input 'share'"),
    ],
)
def test_inputs_that_can_t_be_used_are_said(
    stage: Stage, inputs: dict[str, bytes], word: str
) -> None:
    failed = stage.work(stage.unit("router_round/0/2", **inputs)).failed
    assert failed is not None
    assert failed.unit_id == "router_round/0/2"
    assert word in failed.reason


def test_an_input_that_the_coordinator_has_no_more_is_said(stage: Stage) -> None:
    unit = stage.unit("router_round/0/1", share=ids())
    stage.loopback.blobs.clear()
    failed = stage.work(unit).failed
    assert failed is not None
    assert "no such blob" in failed.reason


def test_a_bug_in_a_unit_is_a_failure_and_the_node_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> work.Done:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("smalltalk_node.worker.do_unit", broken)
    failed = stage.work(stage.unit("router_round/0/1", share=ids())).failed
    assert failed == msg.Failure("router_round/0/1", "ZeroDivisionError: odd")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_not_handed_in(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(
        "smalltalk_node.worker.do_unit", lambda *_: work.Done({}, {"loss_last": value})
    )
    failed = stage.work(stage.unit("router_round/0/1", share=ids())).failed
    assert failed is not None
    assert "diverged" in failed.reason


def test_a_machine_that_can_t_work_stops_after_three_units(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> work.Done:
        raise WorldError("the disk is full.")

    monkeypatch.setattr("smalltalk_node.worker.do_unit", full)
    units = [stage.unit(f"router_round/{n}/1", share=ids()) for n in range(3)]
    orders = [msg.Order("do this", unit=unit) for unit in units]
    with pytest.raises(WorldError, match="disk is full"):
        stage.play(orders[0], msg.Order("well"), orders[1], msg.Order("well"), orders[2])
    assert stage.status()["state"] == "stopped"
    failures = [q.failed.unit_id for q in stage.loopback.exchanges if q.failed]
    assert failures == ["router_round/0/1", "router_round/1/1"]


def test_an_upload_that_breaks_off_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    put, codes = Loopback.PutBlob, ["UNAVAILABLE", "FAILED_PRECONDITION"]

    def breaking(self: Loopback, requests: Any, context: Any) -> Any:
        if codes:
            context.abort(grpc.StatusCode[codes.pop()], "the line broke")
        return put(self, requests, context)

    # Handlers are looked up when the server starts, so the class's own is replaced before.
    monkeypatch.setattr(Loopback, "PutBlob", breaking)
    with serving() as served:
        again = Stage(served, stage.corpus, served.node_folder(stage.folder.path.parent / "again"))
        done = again.work(again.unit("router_round/0/1", share=ids())).finished
    assert done is not None
    assert codes == []
    assert {ref.digest for ref in done.outputs} <= served.loopback.blobs.keys()


# ---------------------------------------------------------------------------- conversation


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


# ------------------------------------------------------------------------------ what it joins


def test_the_run_is_remembered_for_the_next_start(stage: Stage) -> None:
    stage.play(STOP)
    identity = stage.folder.identity()
    assert identity.run_id == "run-1"
    assert identity.coordinator_key == KEY.public_bytes.hex()
    stage.script(STOP)
    assert Program(stage.folder, Options()).run() == STOP.reason  # the corpus is known
    first, second = (join.incarnation for join in stage.loopback.joins)
    assert second > first


def test_no_corpus_is_a_users_mistake(stage: Stage) -> None:
    with pytest.raises(DataError, match="--corpus"):
        Program(stage.folder, Options())


def test_another_corpus_than_the_runs_is_not_worked_on(stage: Stage, tmp_path: Path) -> None:
    other = write_tiny_corpus(tmp_path / "other", seed=2)
    with pytest.raises(DataError, match="is not the run's"):
        stage.play(manifest=tiny_manifest(other))


def test_a_damaged_corpus_is_found_before_work(stage: Stage, tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "damaged")
    shard = tmp_path / "damaged" / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        Program(stage.folder, Options(corpus.folder))


def test_a_corpus_is_read_through_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    real = TokenCorpus.open

    def counting(folder: Path, verify: bool = False) -> TokenCorpus:
        opened.append(verify)
        return real(folder, verify)

    monkeypatch.setattr(TokenCorpus, "open", counting)
    stage.program()
    stage.program()
    assert opened == [False, True, False]


def test_a_manifest_that_is_not_signed_is_refused(stage: Stage) -> None:
    stage.script()
    good = stage.welcome
    stage.loopback.behaviour.join = lambda join: convert.Welcome(
        good(join).joined, good(join).manifest, bytes(64), KEY.public_bytes
    )
    with pytest.raises(Unauthenticated, match="manifest"):
        stage.program().run()


def test_another_coordinator_than_the_first_time_is_refused(stage: Stage) -> None:
    stage.folder.remember(coordinator_key="ab" * 32)
    with pytest.raises(Unauthenticated, match="another signing key"):
        stage.play()
