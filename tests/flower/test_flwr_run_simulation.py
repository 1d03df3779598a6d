"""`flwr run` with Flower's own simulation engine: the same bytes as the native carrier's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.flower_runs import what_came
from support.local_run import finish_run, make_run_folder
from support.tiny_run import tiny_toml

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.children import Children
from smalltalk_fed.demo.federation import Federation
from smalltalk_fed.host.folder import RunFolder

ROOT = Path(__file__).parents[2]
QUIET = {"audit": {"rate": 0.0}}


@pytest.mark.timeout(240)
def test_the_simulation_engine_gives_the_same_run(corpus: TokenCorpus, tmp_path: Path) -> None:
    """From the source folder as it is: Flower bundles it, and its virtual nodes run that."""
    native = make_run_folder(tmp_path / "native", corpus, **QUIET)
    finish_run(native, corpus)
    (tmp_path / "run.toml").write_text(tiny_toml(corpus, **QUIET))
    with Children(tmp_path / "logs", Federation.environment(tmp_path)) as children:
        federation = Federation(tmp_path, children, simulated_nodes=3)
        federation.start()
        run_id = federation.submit(
            ROOT,
            run_dir=str(tmp_path / "run"),
            corpus=str(corpus.folder),
            config=str(tmp_path / "run.toml"),
        )
        line = federation.wait(run_id, 180.0, (tmp_path / "run" / "mixture").exists)
        said = federation.log(run_id)
    assert line["status"] == "finished:completed", said
    assert "round 2 of 2: router loss" in said
    assert "suffix_ppl" in said
    assert what_came(RunFolder.open(tmp_path / "run")) == what_came(native)
    history = json.loads((tmp_path / "run" / "flower-history.json").read_text())
    assert history["evaluation"]["suffix_ppl"] > 1
    assert len(list((tmp_path / "run-nodes").iterdir())) == 3
