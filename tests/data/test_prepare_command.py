"""`smalltalk prepare` as a person meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from typer.testing import CliRunner

from smalltalk_fed.data.cli import prepare
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(prepare)
    return app


@pytest.fixture
def text(tmp_path: Path, write_jsonl: Callable[[Path, list[Any]], Path]) -> Path:
    lines = [
        {"body": f"document number {number} " * 9, "kind": "ab"[number % 2], "part": part}
        for number, part in enumerate(["train"] * 6 + ["test"] * 2)
    ]
    return write_jsonl(tmp_path / "text.jsonl", lines)


COMMON = ["--sequence-tokens", "8", "--text-field", "body", "--workers", "1"]


def test_json_summary(app: typer.Typer, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    fields = ["--vocabulary", "280", "--label-field", "kind", "--split-field", "part"]
    arguments = [str(text), "--out", str(out), *COMMON, *fields, "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    corpus = TokenCorpus.open(out, verify=True)
    assert summary["digest"] == corpus.digest
    assert (summary["sequence_tokens"], summary["vocabulary"]) == (8, corpus.manifest.vocabulary)
    assert (summary["train"]["documents"], summary["heldout"]["documents"]) == (6, 2)
    assert summary["train"]["sequences"] == len(corpus.train)
    assert corpus.label_names == ["a", "b"]


def test_a_taken_tokenizer_and_nothing_held_out(
    app: typer.Typer, text: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = [str(text), *COMMON, "--heldout", "0", "--packing", "concat"]
    made = CliRunner().invoke(app, [*arguments, "--out", str(first), "--vocabulary", "280"])
    assert made.exit_code == 0, made.output
    assert "8 documents" in made.stdout
    assert "Nothing is held out" in made.stdout
    tokenizer = ["--tokenizer", str(first / "tokenizer")]
    taken = CliRunner().invoke(app, [*arguments, "--out", str(second), *tokenizer])
    assert taken.exit_code == 0, taken.output
    assert TokenCorpus.open(first).digest == TokenCorpus.open(second).digest


def test_a_mistake_is_raised_for_the_program_to_tell(
    app: typer.Typer, text: Path, tmp_path: Path
) -> None:
    arguments = [str(text), "--out", str(tmp_path / "corpus"), "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, DataError)
    assert "there is no field 'text'; it has body, kind, part" in str(result.exception)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_tokenizer_that_fails_over_the_text_is_told(
    app: typer.Typer, text: Path, tmp_path: Path, workers: str
) -> None:
    foreign, out = tmp_path / "foreign.json", tmp_path / "corpus"
    Tokenizer(WordLevel({"a": 0}, "no such token")).save(str(foreign))
    arguments = [str(text), "--out", str(out), *COMMON, "--workers", workers]
    result = CliRunner().invoke(app, [*arguments, "--tokenizer", str(foreign)])
    assert isinstance(result.exception, DataError)
    assert "can't be made into tokens by this tokenizer" in str(result.exception)
    assert not out.exists()


def test_every_option_says_what_it_is_for(app: typer.Typer) -> None:
    command = typer.main.get_command(app)
    texts = {parameter.name: getattr(parameter, "help", None) for parameter in command.params}
    assert all(texts[name] for name in texts if name != "inputs"), texts
