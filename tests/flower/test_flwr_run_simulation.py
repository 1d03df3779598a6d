"""`flwr run` with Flower's own simulation engine: the same bytes as the native carrier's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.flower_runs import what_came
from support.flower_silos import SILOS, private_run_folder, text_of
from support.local_run import finish_run, make_run_folder
from support.silo_run import run_silos
from support.tiny_run import tiny_toml

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.children import Children
from smalltalk_fed.demo.federation import Federation
from smalltalk_fed.flower.app_folder import write_app
from smalltalk_fed.host.folder import RunFolder

ROOT = Path(__file__).parents[2]
QUIET = {"audit": {"rate": 0.0}}


@contextmanager
def simulation(place: Path, nodes: int) -> Iterator[Federation]:
    """A SuperLink that simulates nodes; a program called uv that writes down that it was called."""
    home, tools = place / "home", place / "tools"
    home.mkdir()
    tools.mkdir()
    (tools / "uv").write_text(f"#!/bin/sh\necho called >> {place / 'uv-was-called'}\nexit 1\n")
    (tools / "uv").chmod(0o755)
    environment = Federation.environment(place)
    environment |= {"HOME": str(home), "PATH": f"{tools}{os.pathsep}{environment['PATH']}"}
    with Children(place / "logs", environment) as children:
        federation = Federation(place, children, simulated_nodes=nodes)
        federation.start()
        yield federation


@pytest.mark.timeout(480)
def test_the_simulation_engine_gives_the_same_run(corpus: TokenCorpus, tmp_path: Path) -> None:
    """From the source folder as it is: Flower bundles it, and its virtual nodes run that."""
    native = make_run_folder(tmp_path / "native", corpus, **QUIET)
    finish_run(native, corpus)
    (tmp_path / "run.toml").write_text(tiny_toml(corpus, **QUIET))
    with simulation(tmp_path, 2) as federation:
        run_id = federation.submit(
            ROOT,
            run_dir=str(tmp_path / "run"),
            corpus=str(corpus.folder),
            config=str(tmp_path / "run.toml"),
        )
        line = federation.wait(run_id, 400.0, (tmp_path / "run" / "mixture").exists)
        said = federation.log(run_id)
    assert line["status"] == "finished:completed", said
    assert "round 2 of 2: router loss" in said
    assert "suffix_ppl" in said
    assert what_came(RunFolder.open(tmp_path / "run")) == what_came(native)
    history = json.loads((tmp_path / "run" / "flower-history.json").read_text())
    assert history["evaluation"]["suffix_ppl"] > 1
    assert len(list((tmp_path / "run-nodes").iterdir())) == 2
    assert not (tmp_path / "uv-was-called").exists()
    assert not (tmp_path / "home" / ".flwr").exists()  # all of Flower's is in its own FLWR_HOME
    assert (tmp_path / "flower-home" / "config.toml").exists()


@pytest.mark.slow  # `test_a_private_run_over_flower` is the quick one
@pytest.mark.timeout(300)
def test_simulated_silos_have_a_file_each_and_give_the_same_private_run(
    public: TokenCorpus, tmp_path: Path
) -> None:
    """From an app folder without code: the nodes run what is installed."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for seat, name in enumerate(SILOS):
        (texts / f"silo-{seat}.jsonl").symlink_to(public.folder.parent / f"{name}.jsonl")
    with simulation(tmp_path, len(SILOS)) as federation:
        run_id = federation.submit(
            write_app(tmp_path / "app"),
            run_dir=str(tmp_path / "run"),
            corpus=str(public.folder),
            config=str(public.folder.parent / "run.toml"),
            node_text=str(texts / "silo-{}.jsonl"),
            node_weights="operator",
        )
        line = federation.wait(run_id, 240.0, (tmp_path / "run" / "mixture").exists)
        said = federation.log(run_id)
    assert line["status"] == "finished:completed", said
    assert "block 2 of 2, prices 2: " in said
    assert "suffix_ppl" in said
    nodes = [tmp_path / "run-nodes" / f"node-{seat}" for seat in range(len(SILOS))]
    folder = private_run_folder(tmp_path / "native" / "run", public.folder.parent)
    texts = [text_of(node) for node in nodes]
    run_silos(folder, texts, weights=("operator",) * 3, public=public)
    assert what_came(RunFolder.open(tmp_path / "run")) == what_came(folder)
