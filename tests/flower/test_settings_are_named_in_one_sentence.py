"""Run config and node config: what is wrong is said, where, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.flower_runs import FlowerStage

from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.flower.settings import NodeSettings, RunSettings


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "names no folder for the run"),
        ({"run-dir": "relative"}, "'run-dir' must be a whole path"),
        ({"run-dir": 3}, "'run-dir' must be a text"),
        ({"run-dir": "/tmp/run", "turn-s": 0}, "turn-s must be"),
        ({"run-dir": "/tmp/run", "turn-s": "long"}, "turn-s must be"),
        ({"run-dir": "/tmp/run", "corpus": "here"}, "'corpus' must be a whole path"),
    ],
)
def test_a_run_config_that_is_wrong(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SmalltalkError, match=sentence):
        RunSettings.of(values)


def test_a_run_folder_is_made_from_the_run_config(stage: FlowerStage, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[run]\nname = "mine"\n[sequence]\nlength = 16\nprefix = 8\n')
    values = {
        "run-dir": str(tmp_path / "new"),
        "corpus": str(stage.corpus.folder),
        "config": str(config),
        "settings": "run.seed=7 router.rounds=3 router.chunk_sequences=40",
    }
    folder = RunSettings.of(values).folder(1.0)
    made = folder.manifest.config
    assert (made.run.name, made.run.seed, made.router.rounds) == ("mine", 7, 3)
    again = RunSettings.of({"run-dir": str(tmp_path / "new")}).folder(2.0)
    assert again.manifest == folder.manifest


def test_a_new_run_folder_needs_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(SmalltalkError, match="name the corpus to make it from"):
        RunSettings.of({"run-dir": str(tmp_path / "new")}).folder(1.0)


def test_a_supernodes_owner_names_its_folder_and_corpus() -> None:
    run = {"run-dir": "/run", "corpus": "/of/the/run", "node-dir": "/nodes"}
    with pytest.raises(SmalltalkError, match="--node-config 'dir="):
        NodeSettings.of({}, run)
    with pytest.raises(SmalltalkError, match="--node-config 'dir="):
        NodeSettings.of({"corpus": "/my/corpus"}, run)
    settings = NodeSettings.of({"dir": "/mine", "corpus": "/my/corpus", "name": "n1"}, run)
    assert (settings.folder, settings.corpus) == (Path("/mine"), Path("/my/corpus"))


def test_simulated_nodes_have_folders_of_their_own_and_the_runs_corpus() -> None:
    run = {"run-dir": "/run", "corpus": "/corpus", "node-dir": ""}
    folders = {NodeSettings.of({"partition-id": n}, run).folder for n in range(3)}
    assert folders == {Path(f"/run-nodes/node-{n}") for n in range(3)}
    assert NodeSettings.of({"partition-id": 1}, run | {"node-dir": "/n"}).folder == Path(
        "/n/node-1"
    )
    with pytest.raises(SmalltalkError, match="--run-config 'node-dir="):
        NodeSettings.of({"partition-id": 0}, {"run-dir": "/run"})


def test_a_silos_owner_names_text_seat_and_who_gets_its_experts() -> None:
    run = {"run-dir": "/run", "corpus": "/c", "node-text": "/{}", "node-weights": "public"}
    mine = {"dir": "/mine", "corpus": "/my/text.jsonl", "public": "/c", "seat": 2}
    settings = NodeSettings.of(mine | {"weights": "operator"}, run)
    assert (settings.corpus, settings.public) == (Path("/my/text.jsonl"), Path("/c"))
    assert (settings.seat, settings.weights) == (2, "operator")
    # Whatever else an owner says, such as Flower's own keys: the organiser decides nothing here.
    settings = NodeSettings.of({"dir": "/mine", "corpus": "/t", "partition-id": 1}, run)
    assert (settings.corpus, settings.weights, settings.seat) == (Path("/t"), "", -1)


@pytest.mark.parametrize("seat", ["1", 1.0, True, -2])
def test_a_seat_is_a_number(seat: Any) -> None:
    with pytest.raises(SmalltalkError, match="'seat' must be a number from 0"):
        NodeSettings.of({"dir": "/mine", "corpus": "/t", "seat": seat}, {})


def test_simulated_silos_have_texts_and_seats_by_their_number() -> None:
    run = {
        "run-dir": "/run",
        "corpus": "/public",
        "node-text": "/texts/{}.jsonl",
        "node-weights": "operator",
    }
    settings = NodeSettings.of({"partition-id": 3, "num-partitions": 4}, run)
    assert (settings.corpus, settings.public) == (Path("/texts/3.jsonl"), Path("/public"))
    assert (settings.seat, settings.weights) == (3, "operator")
    with pytest.raises(SmalltalkError, match=r"must have \{\} where a node's number"):
        NodeSettings.of({"partition-id": 0}, run | {"node-text": "/texts/one.jsonl"})
