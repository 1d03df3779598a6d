"""Weights of an unfinished expert go out while it is trained, and another node goes on there."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from smalltalk_node import worker
from support.loopback_coordinator import Loopback, refusing, serving
from support.node_stage import STOP, Stage, ids
from support.tiny_run import tiny_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKey
from smalltalk_fed.errors import Refused
from smalltalk_fed.train.lineage import read_lineage
from smalltalk_fed.wire.signing import verify_result


class Watcher:
    """Answers a node that trains: what it collected, and how it ended."""

    def __init__(self, stage: Stage, unit: Unit, stop_after: int = 0) -> None:
        self.stage, self.unit, self.stop_after = stage, unit, stop_after
        self.collected: list[tuple[int, Result]] = []  # incarnation
        self.told = threading.Event()  # a state was collected
        self.finished: Result | None = None
        self.started = False
        stage.script()
        stage.loopback.behaviour.exchange = self.answer

    def answer(self, question: msg.Exchange) -> msg.Order:
        if question.failed:
            raise AssertionError(question.failed.reason)
        if question.finished:
            self.finished = question.finished
            return msg.Order("taken", accepted=self.unit.unit_id, stop=True)
        if question.collected:
            self.collected.append((question.incarnation, question.collected))
            self.told.set()
        if self.stop_after and len(self.collected) >= self.stop_after:
            return msg.Order("go away", stop=True, failed=True)
        if question.working is None and not self.started:
            self.started = True
            return msg.Order("do this", unit=self.unit, heartbeat_s=0.01)
        step = int(self.collected[-1][1].figures["step"]) if question.collected else 0
        return msg.Order("carry on", heartbeat_s=0.01, collected=step)


@pytest.fixture
def collecting(stage: Stage) -> Stage:
    expert = {"steps": 300, "collect": "every 100 steps"}
    stage.manifest = tiny_manifest(stage.corpus, expert=expert)
    return stage


Hold = Callable[[threading.Event], None]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Let training stand at step 150 until something has happened, or it is told to stop."""
    real = worker.do_unit

    def until(event: threading.Event) -> None:
        def held(*arguments: Any) -> Any:
            *others, should_stop = arguments
            steps = itertools.count(1)

            def ask() -> bool:
                if next(steps) == 150:
                    while not event.wait(0.01) and not should_stop():
                        pass
                return bool(should_stop())

            return real(*others, ask)

        monkeypatch.setattr(worker, "do_unit", held)

    return until


def _work_folder(stage: Stage) -> Path:
    return stage.folder.path / "work" / "run-1" / "train_expert-0"


def test_states_are_uploaded_signed_and_told_while_training_goes_on(
    collecting: Stage, hold: Hold
) -> None:
    stage = collecting
    unit = stage.unit("train_expert/0", segment=ids(40))
    watcher = Watcher(stage, unit)
    hold(watcher.told)
    assert stage.program().run() == "taken"
    assert watcher.finished is not None
    assert watcher.finished.figures["from_step"] == 0
    steps = [int(state.figures["step"]) for _, state in watcher.collected]
    assert steps in ([100], [100, 200])  # the second one's upload may be later than the end
    incarnation, state = watcher.collected[0]
    assert [ref.name for ref in state.outputs] == ["weights"]
    assert state.figures == {"step": float(steps[0]), "from_step": 0.0}
    assert state.outputs[0].digest in stage.loopback.blobs
    key = stage.folder.signing_key().public_bytes
    verify_result(key, "run-1", "n-1", incarnation, unit, state)
    assert ("train_expert/0", "weights", 0) in stage.loopback.uploads


def test_another_node_goes_on_from_what_was_collected(collecting: Stage, hold: Hold) -> None:
    """And the node that had it goes on from its own checkpoint, without fetching its weights."""
    stage = collecting
    first = Watcher(stage, stage.unit("train_expert/0", segment=ids(40)), stop_after=1)
    hold(threading.Event())
    with pytest.raises(Refused, match="go away"):
        stage.program().run()
    free = threading.Event()
    free.set()
    hold(free)
    state = first.collected[0][1]
    step, ref = int(state.figures["step"]), state.outputs[0]
    lineage = read_lineage(_work_folder(stage))
    assert lineage is not None
    assert lineage.handed_out[step] == ref.digest
    inputs = (*first.unit.inputs, BlobRef("state", ref.digest, ref.size))
    unit = Unit(UnitKey.parse("train_expert/0"), inputs, start_step=step)

    other = Stage(stage.served, stage.corpus, stage.served.node_folder(_other(stage), "n-2"))
    other.manifest = stage.manifest
    taken_over = Watcher(other, unit)
    assert other.program().run() == "taken"
    before = stage.loopback.ledger.by_kind()["weights"]["down"]
    went_on = Watcher(stage, unit)
    assert stage.program().run() == "taken"
    assert stage.loopback.ledger.by_kind()["weights"]["down"] - before < 1000  # replies only
    third = Stage(stage.served, stage.corpus, stage.served.node_folder(_other(stage, 3), "n-3"))
    third.manifest = stage.manifest
    whole = Watcher(third, first.unit)
    assert third.program().run() == "taken"

    ends = [watcher.finished for watcher in (taken_over, went_on, whole)]
    figures = [end.figures for end in ends if end is not None]
    assert [f["from_step"] for f in figures] == [step, step, 0]
    assert {f["steps"] for f in figures} == {300}
    digests = [end.outputs[1].digest for end in ends if end is not None]
    assert digests[1] == digests[2] != digests[0]


def _other(stage: Stage, number: int = 2) -> Path:
    return stage.folder.path.parent / f"node-{number}"


def test_a_network_that_hangs_holds_up_neither_training_nor_its_end(
    collecting: Stage, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, put = threading.Event(), Loopback.PutBlob
    hold(hanging)

    def hang(self: Loopback, requests: Any, context: Any) -> Any:
        if not hanging.is_set():  # the first upload never ends
            hanging.set()
            self.released.wait(60)
            context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        return put(self, requests, context)

    monkeypatch.setattr(Loopback, "PutBlob", hang)
    with serving() as served:
        stage = Stage(served, collecting.corpus, served.node_folder(_other(collecting)))
        stage.manifest = collecting.manifest
        watcher = Watcher(stage, stage.unit("train_expert/0", segment=ids(40)))
        assert stage.program().run() == "taken"
        assert hanging.is_set()
        assert not served.loopback.released.is_set()
    assert watcher.finished is not None
    assert watcher.collected == []  # the next ones were left out, since one was under way


def test_a_state_that_is_refused_ends_nothing(
    collecting: Stage, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    stage = collecting
    watcher = Watcher(stage, stage.unit("train_expert/0", segment=ids(40)))
    said = threading.Event()
    hold(said)
    stage.loopback.behaviour.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "not now")
    real = watcher.answer

    def answer(question: msg.Exchange) -> msg.Order:
        if "weights are not collected: not now" in caplog.text:
            stage.loopback.behaviour.refusal = None
            said.set()
        return real(question)

    stage.loopback.behaviour.exchange = answer
    assert stage.program().run() == "taken"
    assert said.is_set()


def test_a_coordinator_that_wants_no_state_now_gets_the_next(collecting: Stage, hold: Hold) -> None:
    stage = collecting
    watcher, twice = (
        Watcher(stage, stage.unit("train_expert/0", segment=ids(40))),
        threading.Event(),
    )
    hold(twice)
    real, refused = watcher.answer, []

    def answer(question: msg.Exchange) -> msg.Order:
        if question.collected and len(refused) < 2:  # once more after it joined anew
            refused.append(question.collected)
            if len(refused) == 2:
                twice.set()
            raise refusing(grpc.StatusCode.FAILED_PRECONDITION, "the blob is gone")
        return real(question)

    stage.loopback.behaviour.exchange = answer
    assert stage.program().run() == "taken"
    assert len(refused) == 2
    assert watcher.finished is not None


def test_an_upload_ends_when_its_unit_is_dropped(
    collecting: Stage, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = collecting
    unit = stage.unit("train_expert/0", segment=ids(40))
    began, ended = threading.Event(), threading.Event()

    def endless(*arguments: Any) -> None:
        began.set()
        if arguments[-1].wait(60):
            ended.set()

    monkeypatch.setattr("smalltalk_node.worker.upload", endless)
    hold(threading.Event())
    stage.script()

    def answer(question: msg.Exchange) -> msg.Order:
        if question.working is None:
            return STOP if began.is_set() else msg.Order("do this", unit=unit, heartbeat_s=0.01)
        cancel = unit.unit_id if began.is_set() else ""
        return msg.Order("well", cancel=cancel, heartbeat_s=0.01)

    stage.loopback.behaviour.exchange = answer
    assert stage.program().run() == STOP.reason
    assert ended.wait(30)
    assert not any(question.collected for question in stage.loopback.exchanges)
