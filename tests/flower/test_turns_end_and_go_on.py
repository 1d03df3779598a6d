"""Long units: a turn ends with a checkpoint, the next one goes on there."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.flower_grid import ThreadGrid
from support.flower_runs import FlowerStage, events, what_came
from support.local_run import finish_run, make_run_folder

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import WeightsCollected
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.flower.turns import Report
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert

LONG = {"expert": {"steps": 200, "collect": "every 20 steps"}, "audit": {"rate": 0.0}}


@pytest.fixture(scope="module")
def native(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = make_run_folder(tmp_path_factory.mktemp("native") / "run", corpus, **LONG)
    finish_run(folder, corpus)
    return what_came(folder)


def reports(grid: ThreadGrid) -> list[msg.Exchange]:
    found = []
    for _, kind, records in grid.received:
        if kind in ("train", "evaluate"):
            data = Report.from_records(records).exchange
            found.append(convert.exchange_from_proto("n", pb.ExchangeRequest.FromString(data)))
    return found


def test_a_unit_of_many_turns_gives_the_same_bytes(
    native: dict[str, object], corpus: TokenCorpus, tmp_path: Path
) -> None:
    stage = FlowerStage(tmp_path, corpus, LONG, turn_s=0.15)
    grid = stage.play()
    cut = [said.working for said in reports(grid) if said.working is not None]
    assert len([work for work in cut if work.unit_id.startswith("train_expert")]) >= 2
    assert stage.came() == native


def test_the_newest_weights_ride_with_the_end_of_a_turn(
    corpus: TokenCorpus, tmp_path: Path
) -> None:
    stage = FlowerStage(tmp_path, corpus, LONG, turn_s=0.15)
    stage.play()
    kept = [event for event in events(stage.folder) if isinstance(event, WeightsCollected)]
    assert kept
    assert all(event.signature and event.step % 20 == 0 for event in kept)


def test_a_unit_that_does_not_get_on_gets_more_time_each_turn(
    native: dict[str, object], corpus: TokenCorpus, tmp_path: Path
) -> None:
    """Time for not even one step: only doubling it ends the run."""
    stage = FlowerStage(tmp_path, corpus, LONG, turn_s=0.001)
    grid = stage.play()
    assert len(grid.received) > 20
    assert stage.came() == native
