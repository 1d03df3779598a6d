"""What a killed app, a node that is gone and a killed ServerApp cost."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Error, RecordDict
from support.deployment import wait_for
from support.flower_grid import CRASHED, GONE, ThreadGrid
from support.flower_runs import FlowerStage, events, what_came
from support.local_run import finish_run, make_run_folder

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Refused
from smalltalk_fed.flower import post
from smalltalk_fed.flower.turns import Order, Report
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.offline import decide_offline, status_offline
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb

QUIET = {"audit": {"rate": 0.0}, "run": {"lease_s": 2.0}}


@pytest.fixture(scope="module")
def native(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = make_run_folder(tmp_path_factory.mktemp("native") / "run", corpus, **QUIET)
    finish_run(folder, corpus)
    return what_came(folder)


@pytest.fixture
def stage(corpus: TokenCorpus, tmp_path: Path) -> FlowerStage:
    return FlowerStage(tmp_path, corpus, QUIET)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the ServerApp logs, line by line."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("smalltalk.flower")
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


def turns(grid: ThreadGrid, node: int = 0) -> int:
    return sum(kind in ("train", "evaluate") and node in (0, n) for n, kind, _ in grid.sent)


def test_a_killed_app_costs_one_turn(
    stage: FlowerStage, native: dict[str, object], said: list[str]
) -> None:
    def fault(node: int, kind: str, number: int) -> Error | None:
        return CRASHED if (node, kind, number) == (101, "train", 1) else None

    grid = stage.play(fault)
    units = [event for event in events(stage.folder) if isinstance(event, UnitAccepted)]
    assert turns(grid) == len(units) + 1
    assert not any(" failed on " in line for line in said)
    assert stage.came() == native


def test_a_turn_that_another_node_has_overtaken_holds_nothing_up(
    stage: FlowerStage, native: dict[str, object], said: list[str]
) -> None:
    """Flower says after a minute that an app died; by then a copy is done, and the run over."""

    def dies_late(node: int, kind: str, records: RecordDict) -> RecordDict:
        if node == 101 and kind == "train" and training(Report.from_records(records)):
            wait_for(lambda: any("still out" in line for line in said), "the end of the run")
            raise RuntimeError("killed")
        return records

    stage.play(alter=dies_late)
    assert stage.came() == native
    assert "the last turn of train_expert/" in said[-2]


def training(report: Report) -> bool:
    said = pb.ExchangeRequest.FromString(report.exchange)
    return said.finished.unit_id.startswith("train_expert/")


def test_an_answer_that_waits_for_the_next_message_is_knocked_for(
    stage: FlowerStage, native: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a SuperNode that owed an answer to a run whose ServerApp was killed."""
    monkeypatch.setattr(post, "LATE_S", 0.2)
    grids: list[ThreadGrid] = []

    def knocks(node: int) -> int:
        return sum((n, kind) == (node, "query.knock") for n, kind, _ in grids[0].sent)

    def lies_there(node: int, kind: str, records: RecordDict) -> RecordDict:
        if node == 101 and kind == "train":
            wait_for(lambda: knocks(101) > 0, "the next message")
        return records

    stage.turn_s = 0.5
    stage.play(on_grid=grids.append, alter=lies_there)
    assert stage.came() == native
    assert all(not records for _, kind, records in grids[0].received if kind == "query.knock")


def test_an_app_that_always_dies_leaves_its_units_to_others(
    stage: FlowerStage, native: dict[str, object], said: list[str]
) -> None:
    def fault(node: int, kind: str, number: int) -> Error | None:
        return CRASHED if node == 101 and kind == "train" and number < 6 else None

    stage.play(fault)
    assert stage.came() == native
    assert any(" failed on " in line for line in said)


def test_a_run_without_a_node_that_is_gone_goes_on(
    stage: FlowerStage, native: dict[str, object]
) -> None:
    """Its lease is free at once: waiting for it to end would take minutes."""

    def fault(node: int, kind: str, number: int) -> Error | None:
        if node == 101 and (kind, number) not in (("query.join", 0), ("train", 0)):
            return GONE
        return None

    grid = stage.play(fault)
    assert stage.came() == native
    assert turns(grid, node=101) == 2  # and it is not asked for more


def test_a_node_that_comes_back_is_the_same_node(stage: FlowerStage) -> None:
    def fault(node: int, kind: str, number: int) -> Error | None:
        return GONE if (node, kind, number) == (102, "train", 1) else None

    grid = stage.play(fault)
    assert turns(grid, 102) > 2
    assert {event.node_id for event in events(stage.folder) if isinstance(event, UnitAccepted)} == {
        node["node_id"] for node in _nodes(stage)
    }
    assert len(_nodes(stage)) == 2


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_serverapp_that_was_killed_is_started_anew_and_goes_on(
    stage: FlowerStage, native: dict[str, object], after: int
) -> None:
    first = stage.play_until(lambda grid: len(grid.received) > 2 + after)
    done = [event for event in events(stage.folder) if isinstance(event, UnitAccepted)]
    second = stage.play()
    assert stage.came() == native
    assert audit(stage.folder).proved
    every = [event for event in events(stage.folder) if isinstance(event, UnitAccepted)]
    assert len({event.unit_id for event in every}) == len(every)  # nothing twice
    assert turns(second) == len(every) - len(done)
    assert turns(first) >= len(done)


def test_inputs_that_a_node_has_do_not_travel_again(stage: FlowerStage) -> None:
    grid = stage.play()
    sent: list[tuple[int, str]] = []
    for node, kind, records in grid.sent:
        if kind in ("train", "evaluate"):
            sent += [(node, digest) for digest in Order.from_records(records).blobs]
    assert sent
    assert len(sent) == len(set(sent))


def test_a_node_that_lost_its_files_is_sent_them_again(
    stage: FlowerStage, native: dict[str, object]
) -> None:
    def fault(node: int, kind: str, number: int) -> Error | None:
        if (kind, number) == ("train", 2):
            shutil.rmtree(stage.path / stage.names[node - 101] / "cache")
        return None

    grid = stage.play(fault)
    assert stage.came() == native
    assert any(said.missing for said in _said(grid))


def test_a_unit_that_fails_everywhere_pauses_the_run_and_ends_the_app(
    corpus: TokenCorpus, tmp_path: Path
) -> None:
    stage = FlowerStage(tmp_path, corpus, QUIET, names=("a",))

    def fault(node: int, kind: str, number: int) -> Error | None:
        return CRASHED if kind == "train" else None

    with pytest.raises(Refused, match=r"the run is paused: .* failed 6 times"):
        stage.play(fault)


def test_a_paused_run_ends_the_app_and_says_how_to_go_on(stage: FlowerStage) -> None:
    stage.play_until(lambda grid: len(grid.received) > 4)
    decide_offline(stage.folder, msg.Pause("for a while"), SystemClock())
    with pytest.raises(Refused, match="paused: for a while; `smalltalk-coordinator resume"):
        stage.play()
    decide_offline(stage.folder, msg.Resume(), SystemClock())
    stage.play()
    assert stage.folder.mixture.exists()


def _said(grid: ThreadGrid) -> list[Report]:
    turns = ("train", "evaluate")
    return [Report.from_records(records) for _, kind, records in grid.received if kind in turns]


def _nodes(stage: FlowerStage) -> list[dict[str, str]]:
    found: list[dict[str, str]] = status_offline(stage.folder, SystemClock())["nodes"]
    return found
