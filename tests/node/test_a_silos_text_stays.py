"""A silo's text becomes tokens in its own folder, and what is told of it is little."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_run import SHAPE

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_private_manifest
from smalltalk_fed.data.prepare import PrepareOptions, prepare
from smalltalk_fed.errors import DataError
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.limits import Limits
from smalltalk_fed.worksite.silo_text import is_corpus, open_silo, text_digest
from smalltalk_fed.worksite.silo_work import weights_may_leave

NO_CONNECTION: Any = None  # the tokenizer is here already
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen "


def private_run(tokenizer: bytes, vocabulary: int, **expert: object) -> RunManifest:
    table = {
        "run": {"regime": "private", "experts": 2},
        "sequence": {"length": 16, "prefix": 8},
        "router": {"model": SHAPE},
        "expert": {"model": SHAPE, "steps": 4, **expert},
    }
    digest = hashlib.sha256(tokenizer).hexdigest()
    return make_private_manifest(parse_config(table, "test"), digest, vocabulary, "run-1", 0)


class Place:
    """A node's folder that has the run's tokenizer, and a text."""

    def __init__(self, path: Path) -> None:
        self.text = path / "mine.jsonl"
        self.write(30)
        public = path / "public"
        made = prepare(
            PrepareOptions(
                inputs=(self.text,), out=public, sequence_tokens=16, vocabulary=300, workers=1
            )
        )
        tokenizer = (public / "tokenizer" / "tokenizer.json").read_bytes()
        self.public = public
        self.manifest = private_run(tokenizer, made.vocabulary)
        self.folder = NodeFolder.open(path / "node")
        here = self.folder.place("tokenizers") / self.manifest.tokenizer_sha256
        here.mkdir()
        (here / "tokenizer.json").write_bytes(tokenizer)

    def write(self, documents: int) -> None:
        lines = [json.dumps({"text": f"{number}: {WORDS * 3}"}) for number in range(documents)]
        self.text.write_text("\n".join(lines) + "\n")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_tokens_are_made_once_and_again_when_the_text_has_changed(place: Place) -> None:
    first = open_silo(place.folder, place.text, place.manifest, NO_CONNECTION)
    assert len(first.train) > 0
    assert len(first.heldout) > 0
    assert first.folder.is_relative_to(place.folder.path)
    made = (first.folder / "corpus.json").stat().st_mtime_ns
    again = open_silo(place.folder, place.text, place.manifest, NO_CONNECTION)
    assert (again.folder / "corpus.json").stat().st_mtime_ns == made
    place.write(60)
    other = open_silo(place.folder, place.text, place.manifest, NO_CONNECTION)
    assert other.digest != first.digest
    assert len(other.train) > len(first.train)
    assert not is_corpus(first.folder)  # one text at a time


def test_a_corpus_of_the_runs_tokenizer_is_taken_as_it_is(place: Place) -> None:
    corpus = open_silo(place.folder, place.public, place.manifest, NO_CONNECTION)
    assert corpus.folder == place.public


def test_a_corpus_of_another_tokenizer_or_length_is_refused(place: Place, tmp_path: Path) -> None:
    vocabulary = place.manifest.vocabulary
    for name, options in (
        ("other", {"sequence_tokens": 16, "vocabulary": 270}),
        ("longer", {"sequence_tokens": 32, "tokenizer": place.public / "tokenizer"}),
    ):
        out = tmp_path / name
        prepare(PrepareOptions(inputs=(place.text,), out=out, workers=1, **options))  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"another tokenizer|sequences of 32"):
            open_silo(place.folder, out, place.manifest, NO_CONNECTION)
    assert vocabulary != 270


def test_what_is_told_of_the_text_is_the_same_for_the_same_and_nobody_can_make_it(
    place: Place,
) -> None:
    corpus = open_silo(place.folder, place.text, place.manifest, NO_CONNECTION)
    mine, other = SigningKey.create(), SigningKey.create()
    said = text_digest(mine, corpus)
    assert said == text_digest(mine, corpus)
    assert said != text_digest(other, corpus)
    assert said != corpus.digest
    assert len(said) == 64


@pytest.mark.parametrize(
    ("collect", "asked", "allowed", "leaves"),
    [
        ("final", "public", "never", False),
        ("final", "never", "public", False),
        ("never", "public", "public", False),
        ("final", "operator", "public", True),
        ("final", "public", "operator", True),
    ],
)
def test_weights_leave_only_if_run_and_owner_say_so(
    place: Place, collect: str, asked: str, allowed: str, leaves: bool
) -> None:
    manifest = private_run(b"{}", 300, collect=collect, share=asked)
    corpus = open_silo(place.folder, place.public, place.manifest, NO_CONNECTION)
    limits = Limits.model_validate({"weights": allowed})
    workplace = Workplace.inside(place.folder, manifest, corpus, "cpu", limits)
    assert weights_may_leave(workplace) == leaves
