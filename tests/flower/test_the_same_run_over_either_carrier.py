"""The same seed gives the same assignments, routers and experts, whatever carried them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.flower_grid import ThreadGrid
from support.flower_runs import FlowerStage, events, what_came
from support.local_run import finish_run, make_run_folder

from smalltalk_fed.core.events import NodeJoined, UnitAccepted
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.audit import audit
from smalltalk_fed.mixture.package import read_mixture


@pytest.fixture(scope="module")
def stage(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> FlowerStage:
    """With audits, as a run is by default."""
    return FlowerStage(tmp_path_factory.mktemp("flower"), corpus)


@pytest.fixture(scope="module")
def grid(stage: FlowerStage) -> ThreadGrid:
    """A whole run's messages."""
    return stage.play()


@pytest.fixture(scope="module")
def native(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = make_run_folder(tmp_path_factory.mktemp("native") / "run", corpus)
    finish_run(folder, corpus)
    return what_came(folder)


def test_the_same_bytes_as_the_native_conversation(
    grid: ThreadGrid, stage: FlowerStage, native: dict[str, object]
) -> None:
    assert len(native) > 10
    assert stage.came() == native


def test_the_run_is_whole_signed_and_proved(grid: ThreadGrid, stage: FlowerStage) -> None:
    assert read_mixture(stage.folder.mixture).experts[1].trained_by_name in ("a", "b")
    report = audit(stage.folder)
    assert report.proved, report.verdict()
    done = [event for event in events(stage.folder) if isinstance(event, UnitAccepted)]
    assert all(event.signature for event in done)
    keys = {event.signing_key for event in events(stage.folder) if isinstance(event, NodeJoined)}
    assert len(keys) == 2


def test_flowers_result_shows_rounds_perplexity_and_bytes(
    grid: ThreadGrid, stage: FlowerStage
) -> None:
    found = json.loads((stage.folder.path / "flower-history.json").read_text())
    assert list(found["rounds"]) == ["1", "2"]
    assert found["rounds"]["2"]["router-loss"] > 0
    assert found["rounds"]["2"]["bytes-up"] > found["rounds"]["1"]["bytes-up"] > 0
    assert found["evaluation"]["suffix_ppl"] > 1
    assert found["by_kind"]["parameters"]["up"] > 0


def test_evaluation_is_flowers_evaluate_and_all_else_its_train(grid: ThreadGrid) -> None:
    kinds = [kind for _, kind, _ in grid.sent]
    assert kinds.count("query.join") == kinds.count("query.end") == 2
    assert kinds.count("evaluate") == 2
    assert set(kinds) == {"query.join", "train", "evaluate", "query.end"}


def test_a_run_that_began_over_flower_goes_on_over_the_native_carrier(
    corpus: TokenCorpus, tmp_path: Path, native: dict[str, object]
) -> None:
    # Who takes over waits for one lease, as after any restart.
    stage = FlowerStage(tmp_path, corpus, {"run": {"lease_s": 2.0}})
    stage.play_until(lambda grid: any(kind == "train" for _, kind, _ in grid.received))
    finish_run(stage.folder, corpus, ("c", "d"))
    assert stage.came() == native
