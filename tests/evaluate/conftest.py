"""A tiny mixture with untrained models, its corpus, and a dense model beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.tiny_mixture import EXPERT, KINDS, LENGTH, write_mixture, write_model

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.prepare import PrepareOptions, prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled text, a third of it held out."""
    folder = tmp_path_factory.mktemp("evaluate")
    lines = [
        {
            "text": f"{number * 37} {words}" * 5,
            "domain": kind,
            "split": "validation" if number % 3 == 0 else "train",
        }
        for kind, words in KINDS.items()
        for number in range(6)
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(
        PrepareOptions(
            inputs=(folder / "text.jsonl",),
            out=folder / "corpus",
            sequence_tokens=LENGTH,
            vocabulary=290,
            label_field="domain",
            split_field="split",
            workers=1,
        )
    )
    return folder / "corpus"


@pytest.fixture(scope="session")
def whole_mixture(corpus: Path) -> Path:
    """Shared by all tests; not to be changed."""
    folder = corpus.parent / "mixture"
    write_mixture(folder, corpus)
    return folder


@pytest.fixture
def mixture(whole_mixture: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(whole_mixture, tmp_path / "mixture")
    return tmp_path / "mixture"


@pytest.fixture(scope="session")
def dense(corpus: Path) -> Path:
    """A model of the experts' shape."""
    folder = corpus.parent / "dense"
    write_model(folder, EXPERT, TokenCorpus.open(corpus).manifest.vocabulary, b"dense")
    shutil.copyfile(corpus / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
    return folder
