"""The bundled text pack unpacks, is what its digests say, and gives the corpus of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smalltalk_fed.data import packs
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.packs import NOTICE, unpack_small
from smalltalk_fed.data.prepare import PrepareOptions, prepare
from smalltalk_fed.errors import OurError, UserError

DOMAINS = [
    "c",
    "dictionary",
    "formal_math",
    "french",
    "german",
    "javascript",
    "python",
    "scripture",
]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_small(tmp_path_factory.mktemp("pack") / "small")


def test_the_pack_comes_with_its_notice(pack: Path) -> None:
    assert sorted(path.stem for path in pack.glob("*.jsonl")) == DOMAINS
    assert (pack / "NOTICE.md").read_bytes() == NOTICE.read_bytes()
    assert [path.name for path in pack.parent.iterdir()] == ["small"]


def test_unpacking_again_changes_nothing(pack: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in pack.iterdir()}
    assert unpack_small(pack) == pack
    assert {path.name: path.stat().st_mtime_ns for path in pack.iterdir()} == before


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists and is not the text pack"):
        unpack_small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_pack_that_was_changed_is_not_taken_for_the_pack(pack: Path, tmp_path: Path) -> None:
    changed = unpack_small(tmp_path / "small")
    with (changed / "c.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="is not the text pack"):
        unpack_small(changed)


def test_a_damaged_archive_is_our_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    source = tmp_path / "source" / "small"
    source.mkdir(parents=True)
    entry = {"file": "c.jsonl", "sha256": "0" * 64}
    (source / "meta.json").write_text(json.dumps({"domains": {"c": entry}}))
    (source / "c.jsonl").write_text("{}\n")
    with tarfile.open(tmp_path / "small.tar.xz", "w:xz") as archive:
        archive.add(source, "small")
    monkeypatch.setattr(packs, "SMALL_PACK", tmp_path / "small.tar.xz")
    with pytest.raises(OurError, match=r"c\.jsonl has another digest"):
        unpack_small(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_pack_gives_the_corpus_of_the_demo(pack: Path, tmp_path: Path) -> None:
    prepare(
        PrepareOptions(
            inputs=(pack,),
            out=tmp_path / "corpus",
            sequence_tokens=256,
            vocabulary=1024,
            label_field="domain",
            split_field="split",
        )
    )
    corpus = TokenCorpus.open(tmp_path / "corpus", verify=True)
    assert corpus.manifest.vocabulary == 1024
    assert (corpus.manifest.train.documents, corpus.manifest.heldout.documents) == (2418, 161)
    assert 12_500 < len(corpus.train) < 13_500
    assert 800 < len(corpus.heldout) < 950
    assert corpus.label_names == DOMAINS
    labels = corpus.heldout.labels
    assert labels is not None
    assert set(labels.tolist()) == set(range(8))
