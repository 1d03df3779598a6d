"""The same seed gives the same assignments, routers and experts, whatever carried them."""

from __future__ import annotations

import json
from pathlib import Path

from support.flower_runs import FlowerStage, events, what_came
from support.local_run import finish_run, make_run_folder

from smalltalk_fed.core.events import NodeJoined, UnitAccepted
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.audit import audit
from smalltalk_fed.mixture.package import read_mixture


def test_the_same_bytes_as_the_native_conversation(stage: FlowerStage, tmp_path: Path) -> None:
    native = make_run_folder(tmp_path / "native", stage.corpus)
    finish_run(native, stage.corpus)
    stage.play()
    assert len(stage.came()) > 10
    assert stage.came() == what_came(native)


def test_the_run_is_whole_signed_and_proved(stage: FlowerStage) -> None:
    stage.play()
    assert read_mixture(stage.folder.mixture).experts[1].trained_by_name in ("a", "b")
    report = audit(stage.folder)
    assert report.proved, report.verdict()
    done = [event for event in events(stage.folder) if isinstance(event, UnitAccepted)]
    assert all(event.signature for event in done)
    keys = {event.signing_key for event in events(stage.folder) if isinstance(event, NodeJoined)}
    assert len(keys) == 2


def test_flowers_result_shows_rounds_perplexity_and_bytes(stage: FlowerStage) -> None:
    stage.play()
    found = json.loads((stage.folder.path / "flower-history.json").read_text())
    assert list(found["rounds"]) == ["1", "2"]
    assert found["rounds"]["2"]["router-loss"] > 0
    assert found["rounds"]["2"]["bytes-up"] > found["rounds"]["1"]["bytes-up"] > 0
    assert found["evaluation"]["suffix_ppl"] > 1
    assert found["by_kind"]["parameters"]["up"] > 0


def test_evaluation_is_flowers_evaluate_and_all_else_its_train(stage: FlowerStage) -> None:
    grid = stage.play()
    kinds = [kind for _, kind, _ in grid.sent]
    assert kinds.count("query.join") == kinds.count("query.end") == 2
    assert kinds.count("evaluate") == 2
    assert set(kinds) == {"query.join", "train", "evaluate", "query.end"}


def test_a_run_that_began_over_flower_goes_on_over_the_native_carrier(
    corpus: TokenCorpus, tmp_path: Path
) -> None:
    whole = make_run_folder(tmp_path / "native", corpus)
    finish_run(whole, corpus)
    stage = FlowerStage(tmp_path, corpus)
    stage.play_until(lambda grid: any(kind == "train" for _, kind, _ in grid.received))
    finish_run(stage.folder, corpus, ("c", "d"))
    assert stage.came() == what_came(whole)
