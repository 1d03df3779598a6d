"""A corpus folder opens, gathers rows by id, and says what is wrong with it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.data.corpus import TokenCorpus, TokenSplit
from smalltalk_fed.errors import DataError

SHARDS = [np.arange(12).reshape(3, 4), np.arange(12, 40).reshape(7, 4), np.full((1, 4), 299)]


@pytest.fixture
def folder(tmp_path: Path, make_corpus: Callable[..., Path]) -> Path:
    return make_corpus(tmp_path / "corpus", SHARDS, [np.arange(8).reshape(2, 4)])


def naive_rows(shards: list[np.ndarray], ids: list[int], tokens: int) -> np.ndarray:
    """The twin of TokenSplit.rows: one id after the other."""
    rows = [row for shard in shards for row in shard]
    return np.asarray([rows[index][:tokens] for index in ids]).reshape(len(ids), tokens)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenSplit, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("shards")
    counts = [5, 1, 8, 3]
    generator = np.random.default_rng(7)
    shards = [generator.integers(0, 60_000, (count, 6)).astype("<u2") for count in counts]
    files = [folder / f"{number}.bin" for number in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        file.write_bytes(shard.tobytes())
    return TokenSplit(files, counts, 6, np.dtype("<u2")), shards


@given(ids=st.lists(st.integers(0, 16), max_size=40), tokens=st.integers(1, 6))
def test_rows_are_those_of_the_naive_twin(
    many_shards: tuple[TokenSplit, list[np.ndarray]], ids: list[int], tokens: int
) -> None:
    split, shards = many_shards
    rows = split.rows(np.asarray(ids, dtype=np.int64), tokens)
    assert rows.dtype == np.uint16
    assert rows.shape == (len(ids), tokens)
    np.testing.assert_array_equal(rows, naive_rows(shards, ids, tokens))


def test_ids_run_over_shards_and_rows_are_whole_by_default(folder: Path) -> None:
    corpus = TokenCorpus.open(folder, verify=True)
    assert (len(corpus.train), len(corpus.heldout)) == (11, 2)
    everything = corpus.train.rows(np.arange(11))
    np.testing.assert_array_equal(everything, np.concatenate(SHARDS))
    assert corpus.train.sequence_tokens == 4
    assert corpus.digest == corpus.manifest.digest
    assert corpus.tokenizer_folder == folder / "tokenizer"


def test_a_gathered_array_is_the_callers_own(folder: Path) -> None:
    split = TokenCorpus.open(folder).train
    split.rows(np.asarray([0]))[:] = 9
    np.testing.assert_array_equal(split.rows(np.asarray([0])), [[0, 1, 2, 3]])


def test_a_pickled_corpus_carries_no_text(folder: Path) -> None:
    corpus = TokenCorpus.open(folder)
    corpus.train.rows(np.arange(11))
    data = pickle.dumps(corpus)
    assert SHARDS[1].astype("<u2").tobytes() not in data
    np.testing.assert_array_equal(
        pickle.loads(data).train.rows(np.asarray([10, 0]))[:, 0], [299, 0]
    )


def test_wide_ids_are_read_as_uint32(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    rows = np.asarray([[70_000, 1, 2, 3]])
    folder = make_corpus(tmp_path / "wide", [rows], [], vocabulary=70_001, dtype="uint32")
    corpus = TokenCorpus.open(folder, verify=True)
    assert corpus.train.rows(np.asarray([0])).dtype == np.uint32
    np.testing.assert_array_equal(corpus.train.rows(np.asarray([0])), rows)
    assert len(corpus.heldout) == 0
    assert corpus.heldout.rows(np.asarray([], dtype=np.int64)).shape == (0, 4)


@pytest.mark.parametrize(
    ("ids", "tokens", "says"),
    [
        ([11], None, "sequence id 11 does not exist; this split has 11"),
        ([0, -1], None, "sequence id -1 does not exist"),
        ([0], 5, "5 tokens of a sequence were asked for, but the corpus has 4"),
        ([0], 0, "0 tokens of a sequence"),
        ([0.5], None, "array of integers"),
    ],
)
def test_ids_outside_are_refused(
    folder: Path, ids: list[float], tokens: int | None, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        TokenCorpus.open(folder).train.rows(np.asarray(ids), tokens)


def test_labels_go_by_sequence(folder: Path) -> None:
    assert TokenCorpus.open(folder).train.labels is None
    (folder / "labels.json").write_text(json.dumps({"field": "kind", "names": ["a", "b"]}))
    for split, count in (("train", 11), ("heldout", 2)):
        (folder / f"{split}-labels.bin").write_bytes(np.full(count, 1, dtype="<u2").tobytes())
    corpus = TokenCorpus.open(folder)
    assert corpus.label_names == ["a", "b"]
    labels = corpus.train.labels
    assert labels is not None
    assert labels.tolist() == [1] * 11


def _flip(folder: Path) -> None:
    path = folder / "train-00001.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def _rewrite(folder: Path, **changes: object) -> None:
    table = json.loads((folder / "corpus.json").read_bytes())
    (folder / "corpus.json").write_text(json.dumps(table | changes))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda f: (f / "train-00001.bin").unlink(), r"train-00001.bin is missing"),
    "short shard": (
        lambda f: (f / "train-00001.bin").write_bytes(b"1234"),
        r"train-00001.bin has 4 bytes instead of 56",
    ),
    "damaged shard": (_flip, r"train-00001.bin is damaged: its digest differs"),
    "id over the vocabulary": (lambda f: _rewrite(f, vocabulary=299), r"has token id 299"),
    "other version": (lambda f: _rewrite(f, format_version=2), r"format version 2, but"),
    "no version": (lambda f: (f / "corpus.json").write_text("[]"), r"format version None"),
    "unknown key": (lambda f: _rewrite(f, extra=1), r"damaged at 'extra'"),
    "broken json": (lambda f: (f / "corpus.json").write_text("{"), r"corpus.json can't be read"),
    "no manifest": (lambda f: (f / "corpus.json").unlink(), r"is not a corpus"),
    "no tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), r"is missing"),
    "other tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{ }"),
        r"is not the tokenizer that",
    ),
    "broken labels": (lambda f: (f / "labels.json").write_text("{}"), r"labels.json can't"),
    "labels without ids": (
        lambda f: (f / "labels.json").write_text('{"names": []}'),
        r"train-labels.bin is missing",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_a_sentence(folder: Path, name: str) -> None:
    damage, says = BROKEN[name]
    damage(folder)
    with pytest.raises(DataError, match=says) as caught:
        TokenCorpus.open(folder, verify=True)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_without_verify_digests_are_not_read(folder: Path) -> None:
    _flip(folder)
    assert len(TokenCorpus.open(folder).train) == 11


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        TokenCorpus.open(tmp_path / "nowhere")


def test_a_shard_that_vanishes_while_open_is_the_datas_fault(folder: Path) -> None:
    corpus = TokenCorpus.open(folder)
    (folder / "train-00000.bin").unlink()
    with pytest.raises(DataError, match="changed while in use"):
        corpus.train.rows(np.asarray([0]))


def test_a_corpus_opens_without_torch_and_without_the_tokenizers(folder: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from smalltalk_fed.data.corpus import TokenCorpus\n"
        "TokenCorpus.open(pathlib.Path(sys.argv[1]), verify=True)\n"
        "print({'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
