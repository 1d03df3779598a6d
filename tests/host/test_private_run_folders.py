"""The run folder of a private run: made of a tokenizer, or of public text; traced like others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from smalltalk_coordinator.cli import NAME, app
from support.core_world import World
from support.silo_world import three_silos, work

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.config.manifest import NO_CORPUS
from smalltalk_fed.errors import ConfigError, DataError, UserError, WorldError
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.trace import trace_node
from smalltalk_fed.telemetry.console import run_program

TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    "added_tokens": [{"id": 7, "content": "<|endoftext|>"}],
}
SETTINGS = (
    "run.regime=private", "run.experts=4", "private.experts_of=[1,1,2]", "sequence.length=16",
    "sequence.prefix=8", "router.rounds=3", "private.exchange_rounds=2", "private.price_rounds=3",
    "private.train_sequences_min=8", "private.heldout_sequences_min=2", "expert.steps=2",
)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": "x.py"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def make(path: Path, text: Path, *more: str) -> RunFolder:
    config = load_config(None, (*SETTINGS, *more))
    return RunFolder.create(path, config, "", text, Addresses.of(["a:1"], ["a:2"]), 0.0)


@pytest.mark.parametrize("whole", [True, False])
def test_a_tokenizer_is_all_that_it_needs(tmp_path: Path, tokenizer: Path, whole: bool) -> None:
    given = tokenizer if whole else tokenizer / "tokenizer.json"
    run = make(tmp_path / "run", given)
    data = (tokenizer / "tokenizer.json").read_bytes()
    assert run.manifest.corpus_digest == NO_CORPUS
    assert run.manifest.train_sequences == 0
    assert run.manifest.vocabulary == 8  # one more than the largest id
    assert run.manifest.tokenizer_sha256 == hashlib.sha256(data).hexdigest()
    assert run.tokenizer() == data
    assert RunFolder.open(run.path).manifest == run.manifest


def test_what_would_name_code_is_left_behind(tmp_path: Path, tokenizer: Path) -> None:
    run = make(tmp_path / "run", tokenizer)
    kept = json.loads((run.path / "tokenizer" / "tokenizer_config.json").read_text())
    assert kept == {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a tokenizer"),
        (b"[]", "not a tokenizer"),
        (b'{"model": {"vocab": {"a": 0, "b": 99999999}}}', "at most"),
    ],
)
def test_what_is_no_tokenizer_is_refused_and_nothing_is_left(
    tmp_path: Path, tokenizer: Path, content: bytes, said: str
) -> None:
    (tokenizer / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        make(tmp_path / "run", tokenizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer"]


def test_a_tokenizer_that_has_changed_is_not_handed_out(tmp_path: Path, tokenizer: Path) -> None:
    run = make(tmp_path / "run", tokenizer)
    (run.path / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(WorldError, match="not the run's tokenizer"):
        run.tokenizer()


def test_a_share_of_public_text_needs_public_text(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match="public_share"):
        make(tmp_path / "run", tokenizer, "private.public_share=0.5")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--corpus", "x", "--tokenizer", "y"),
        ("--tokenizer", "y", "--set", "run.regime=shared"),
    ],
)
def test_the_command_says_what_a_run_is_made_with(
    tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for setting in SETTINGS[:1] for part in ("--set", setting)]
    code = run_program(app, NAME, ["init", str(tmp_path / "run"), *sets, *options])
    assert code == 2
    assert "--tokenizer stands in its place" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_silos_work_is_traced_and_its_text_is_not_proved(tmp_path: Path, tokenizer: Path) -> None:
    run = make(tmp_path / "run", tokenizer)
    world = World(run.manifest)
    nodes = three_silos(world)
    work(world, nodes, "finished")
    journal = Journal(run.journal, create=False)
    journal.append(world.journal)
    journal.close()
    found = trace_node(run, nodes[1].node_id)
    assert {(use.what, use.through) for use in found.uses} >= {
        ("the mixture's routers", "routers of seat 1"),
        ("the prices", "counts of seat 1"),
        ("the mixture", "train_expert/1"),
        ("the mixture's perplexity", "evaluate_silo/1"),
    }
    with pytest.raises(UserError, match="stays on its nodes"):
        audit(run)
