"""Inputs that are of no use, bugs, full disks, broken lines: what a whole node says and does."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from support.loopback_coordinator import Loopback, serving
from support.node_stage import Stage, ids

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import WorldError
from smalltalk_fed.mixture.idlists import encode_ids
from smalltalk_fed.worksite import work


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
