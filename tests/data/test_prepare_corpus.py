"""Text files become a corpus: what is in it, whatever the workers, and nothing if interrupted."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from smalltalk_fed.data import encoding
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.prepare import PrepareOptions, PrepareProgress, prepare
from smalltalk_fed.data.tokenizer import load_tokenizer
from smalltalk_fed.data.writing import SplitWriter
from smalltalk_fed.errors import ConfigError, DataError, UserError, WorldError

WORDS = ["router", "expert", "Würde", "def f(x):\n    return x", "0.016", "and so", "—", "\t"]


def records(count: int, seed: int = 5) -> list[dict[str, Any]]:
    """Documents of differing length; every third is of kind b, every fifth for validation."""
    generator = np.random.default_rng(seed)
    return [
        {
            "text": f"{number} " + " ".join(generator.choice(WORDS, generator.integers(1, 120))),
            "kind": "b" if number % 3 == 0 else "a",
            "split": "validation" if number % 5 == 0 else "train",
        }
        for number in range(count)
    ]


@pytest.fixture
def text(tmp_path: Path, write_jsonl: Callable[[Path, list[Any]], Path]) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", records(80))


def options(text: Path, **changes: Any) -> PrepareOptions:
    """Options for a small corpus beside `text`."""
    standard: dict[str, Any] = {
        "inputs": (text,),
        "out": text.parent / "corpus",
        "sequence_tokens": 16,
        "vocabulary": 300,
        "workers": 1,
    }
    return PrepareOptions(**(standard | changes))


def assert_nothing_is_left(text: Path) -> None:
    assert [path.name for path in text.parent.iterdir()] == [text.name]
    assert not multiprocessing.active_children()


def test_cut_keeps_whole_sequences_of_each_document(text: Path) -> None:
    manifest = prepare(options(text, label_field="kind", split_field="split"))
    corpus = TokenCorpus.open(text.parent / "corpus", verify=True)
    assert corpus.manifest == manifest
    tokenizer = load_tokenizer(corpus.tokenizer_folder)
    assert corpus.label_names == ["b", "a"]
    for side, split in (("train", corpus.train), ("validation", corpus.heldout)):
        rows, labels = [], []
        for record in records(80):
            if record["split"] == side:
                ids = tokenizer.encode(record["text"]).ids
                whole = len(ids) // 16
                rows += [ids[16 * number : 16 * (number + 1)] for number in range(whole)]
                labels += [corpus.label_names.index(record["kind"])] * whole
        np.testing.assert_array_equal(split.rows(np.arange(len(split))), rows)
        assert split.labels is not None
        assert split.labels.tolist() == labels
    assert (manifest.train.documents, manifest.heldout.documents) == (64, 16)


def test_concat_gives_the_text_back(text: Path) -> None:
    prepare(options(text, packing="concat", heldout_fraction=0.0))
    corpus = TokenCorpus.open(text.parent / "corpus")
    tokenizer = load_tokenizer(corpus.tokenizer_folder)
    ids = corpus.train.rows(np.arange(len(corpus.train))).ravel().tolist()
    expected = "".join(record["text"] + "<|endoftext|>" for record in records(80))
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    assert expected.startswith(decoded)
    source = json.loads((corpus.folder / "source.json").read_bytes())
    assert source["splits"]["train"]["dropped_tokens"] < 16
    assert len(corpus.heldout) == 0
    assert corpus.label_names is None


def test_the_report_adds_up(text: Path) -> None:
    manifest = prepare(options(text))
    source = json.loads((text.parent / "corpus" / "source.json").read_bytes())
    kept = 16 * (manifest.train.sequences + manifest.heldout.sequences)
    splits = source["splits"].values()
    tokens = sum(split["tokens"] for split in splits)
    assert kept + sum(split["dropped_tokens"] for split in splits) == tokens
    assert source["dropped_token_share"] == pytest.approx((tokens - kept) / tokens, abs=1e-6)
    assert sum(split["documents"] for split in splits) == 80
    text_bytes = sum(len(record["text"].encode()) for record in records(80))
    assert sum(split["text_bytes"] for split in splits) == text_bytes
    assert source["bytes_read"] == text.stat().st_size
    assert source["corpus_digest"] == manifest.digest


@pytest.mark.parametrize("packing", ["cut", "concat"])
def test_the_number_of_workers_changes_nothing(
    text: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    for workers, pieces in ((1, 1024), (2, 3)):  # many batches in flight
        monkeypatch.setattr(encoding, "BATCH_PIECES", pieces)
        out = text.parent / f"corpus-{workers}"
        manifests.append(
            prepare(options(text, out=out, workers=workers, packing=packing, label_field="kind"))
        )
    assert manifests[0] == manifests[1]
    for name in ("train-labels.bin", "heldout-labels.bin", "labels.json"):
        one, two = (text.parent / f"corpus-{workers}" / name for workers in (1, 2))
        assert one.read_bytes() == two.read_bytes()
    assert not multiprocessing.active_children()


def test_shards_rotate_at_the_size(text: Path) -> None:
    whole = prepare(options(text, out=text.parent / "whole"))
    shards = prepare(options(text, out=text.parent / "shards", shard_bytes=16 * 2 * 50))
    assert [shard.sequences for shard in shards.train.shards][:-1] == [50] * (
        len(shards.train.shards) - 1
    )
    assert len(shards.train.shards) > 2
    assert shards.digest != whole.digest
    ids = np.arange(whole.train.sequences)
    np.testing.assert_array_equal(
        TokenCorpus.open(text.parent / "shards", verify=True).train.rows(ids),
        TokenCorpus.open(text.parent / "whole").train.rows(ids),
    )


def heldout_texts(folder: Path) -> set[str]:
    """Numbers that documents begin with, of the held-out split packed by `concat`."""
    corpus = TokenCorpus.open(folder)
    ids = corpus.heldout.rows(np.arange(len(corpus.heldout))).ravel().tolist()
    decoded = load_tokenizer(corpus.tokenizer_folder).decode(ids, skip_special_tokens=False)
    return {document.split()[0] for document in decoded.split("<|endoftext|>")[:-1]}


def test_equal_documents_land_on_one_side(
    tmp_path: Path, write_jsonl: Callable[[Path, list[Any]], Path]
) -> None:
    twice = write_jsonl(tmp_path / "text.jsonl", records(60) + records(60)[::-1])
    for seed in (1, 2):
        out = tmp_path / f"corpus-{seed}"
        chosen = options(twice, out=out, packing="concat", heldout_fraction=0.3, seed=seed)
        manifest = prepare(chosen)
        assert 10 <= manifest.heldout.documents <= 60
        assert manifest.heldout.documents % 2 == 0
        assert manifest.heldout.documents + manifest.train.documents == 120
    assert heldout_texts(tmp_path / "corpus-1") != heldout_texts(tmp_path / "corpus-2")


def test_heldout_text_does_not_shape_the_tokenizer(
    tmp_path: Path, write_jsonl: Callable[[Path, list[Any]], Path]
) -> None:
    train = [{"text": "abab " * 60, "split": "train"}]
    heldout = [{"text": "zyzyzyzy " * 60, "split": "test"}]
    text = write_jsonl(tmp_path / "text.jsonl", train + heldout)
    prepare(options(text, split_field="split"))
    vocabulary = load_tokenizer(tmp_path / "corpus" / "tokenizer").get_vocab()
    assert "abab" in vocabulary
    assert "zy" not in vocabulary


def test_the_tokenizer_learns_from_a_sample_of_all_the_text(
    tmp_path: Path, write_jsonl: Callable[[Path, list[Any]], Path]
) -> None:
    lines = [
        {"text": f"{number} " + ("abab " if number < 100 else "yzyz ") * 20}
        for number in range(200)
    ]
    text = write_jsonl(tmp_path / "text.jsonl", lines)
    prepare(options(text, tokenizer_sample_bytes=4_000))
    source = json.loads((tmp_path / "corpus" / "source.json").read_bytes())
    assert 1_000 < source["tokenizer_sample_bytes"] < 4_200
    vocabulary = load_tokenizer(tmp_path / "corpus" / "tokenizer").get_vocab()
    assert all(any(pair in token for token in vocabulary) for pair in ("ab", "yz"))


def test_the_smallest_sample_still_has_text(text: Path) -> None:
    prepare(options(text, tokenizer_sample_bytes=1))
    source = json.loads((text.parent / "corpus" / "source.json").read_bytes())
    assert source["tokenizer_sample_bytes"] > 0


def test_one_huge_document_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the document: four times the text, about the same peak."""
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1 << 16)  # so that 1 MB is many
    peaks = []
    prepare(options(_long_text(tmp_path / "seed.txt", 1), out=tmp_path / "seed"))
    for megabytes in (1, 4):
        text = _long_text(tmp_path / f"{megabytes}.txt", megabytes)
        chosen = options(
            text,
            out=tmp_path / f"corpus-{megabytes}",
            vocabulary=None,
            tokenizer=tmp_path / "seed" / "tokenizer",
            heldout_fraction=0.0,
        )
        tracemalloc.start()
        manifest = prepare(chosen)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert manifest.train.documents == 1
    assert peaks[1] < 1.2 * peaks[0]


def _long_text(path: Path, megabytes: int) -> Path:
    line = "one document that is longer than everything else together\n"
    path.write_text(line * (megabytes * 1_000_000 // len(line)))
    return path


def test_a_large_vocabulary_needs_uint32(text: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*(f"unused {number}" for number in range(70_000)), *alphabet]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    source = text.parent / "tokenizer.json"
    tokenizer.save(str(source))
    manifest = prepare(options(text, vocabulary=None, tokenizer=source))
    assert (manifest.dtype, manifest.vocabulary) == ("uint32", 70_256)
    corpus = TokenCorpus.open(text.parent / "corpus", verify=True)
    assert corpus.train.rows(np.asarray([0])).min() >= 70_000
    with pytest.raises(DataError, match="no end-of-text token to join documents"):
        prepare(
            options(
                text,
                out=text.parent / "b",
                vocabulary=None,
                tokenizer=source,
                packing="concat",
            )
        )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("phase", ["tokenizer", "tokens"])
def test_ctrl_c_leaves_nothing(text: Path, workers: int, phase: str) -> None:
    seen = []

    def interrupt(progress: PrepareProgress) -> None:
        seen.append(progress)
        if progress.phase == phase:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        prepare(options(text, workers=workers), interrupt)
    assert seen[-1].phase == phase
    assert_nothing_is_left(text)
    assert caught.tb is not None  # even while somebody still holds the frames it went through


def test_a_full_disk_leaves_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SplitWriter, "append", full)
    with pytest.raises(WorldError, match=r"disk that .*corpus is on is full; nothing was kept"):
        prepare(options(text))
    assert_nothing_is_left(text)


def test_a_worker_that_dies_leaves_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BATCH_PIECES", 3)

    def kill(progress: PrepareProgress) -> None:
        if progress.phase == "tokens":
            for child in multiprocessing.active_children():
                child.kill()

    with pytest.raises(WorldError, match="a process that encodes text died"):
        prepare(options(text, workers=2), kill)
    assert_nothing_is_left(text)


def test_a_broken_line_leaves_nothing(text: Path) -> None:
    with text.open("a") as file:
        file.write("{broken\n")
    chosen = options(text, vocabulary=None, tokenizer=_tokenizer_of(text), workers=2)
    with pytest.raises(DataError, match="line 81: it is not valid JSON"):
        prepare(chosen)
    with pytest.raises(DataError, match="line 81: it is not valid JSON"):
        prepare(options(text))
    assert sorted(path.name for path in text.parent.iterdir()) == ["seed", "text.jsonl"]


def _tokenizer_of(text: Path) -> Path:
    seed = text.parent / "seed"
    seed.mkdir()
    sample = seed / "sample.txt"
    sample.write_text("router expert " * 40)
    prepare(options(sample, out=seed / "corpus", heldout_fraction=0.0))
    return seed / "corpus" / "tokenizer"


def test_a_folder_in_use_is_not_touched(text: Path) -> None:
    out = text.parent / "corpus"
    out.mkdir()
    prepare(options(text))  # an empty one is fine
    before = sorted((path, path.stat().st_mtime_ns) for path in out.iterdir())
    with pytest.raises(UserError, match="already exists and is not empty"):
        prepare(options(text))
    assert sorted((path, path.stat().st_mtime_ns) for path in out.iterdir()) == before
    with pytest.raises(UserError, match="already exists and is not empty"):
        prepare(options(text, out=text))
    with pytest.raises(UserError, match="can't be written"):
        prepare(options(text, out=text / "below-a-file"))


TOO_LITTLE: dict[str, tuple[list[dict[str, str]], dict[str, Any], str]] = {
    "short documents": (
        [{"text": "ab"}, {"text": "cd"}],
        {"heldout_fraction": 0.0},
        r"no whole sequence of 16 tokens came out: the 2 training documents have 4 tokens "
        r"together; give more text, lower the sequence length or use packing 'concat'\.",
    ),
    "little text": (
        [{"text": "ab"}],
        {"heldout_fraction": 0.0, "packing": "concat"},
        r"have 2 tokens together; give more text, lower the sequence length\.",
    ),
    "all held out": (
        [{"text": "ab" * 50}, {"text": "cd" * 50}],
        {"heldout_fraction": 1 - 1e-12},
        r"2 documents were read and all of them are held out",
    ),
    "blank": ([{"text": " \n"}], {}, r"there is no text: every document is empty"),
    "unknown split": (
        [{"text": "ab", "split": "nope"}],
        {"split_field": "split"},
        r"a document's split is 'nope', which is neither",
    ),
}


@pytest.mark.parametrize("name", TOO_LITTLE)
def test_text_that_gives_no_corpus_is_told(
    tmp_path: Path, write_jsonl: Callable[[Path, list[Any]], Path], name: str
) -> None:
    lines, changes, says = TOO_LITTLE[name]
    text = write_jsonl(tmp_path / "text.jsonl", lines)
    with pytest.raises(DataError, match=says):
        prepare(options(text, vocabulary=257, **changes))
    assert_nothing_is_left(text)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": ()}, "there is no input"),
        ({"sequence_tokens": 3}, "3 tokens is too short"),
        ({"vocabulary": 100}, "must be at least 257"),
        ({"tokenizer": Path("x")}, "both given"),
        ({"heldout_fraction": 1.0}, "at least 0 and below 1"),
        ({"packing": "dense"}, "use 'cut' or 'concat'"),
        ({"workers": 0}, "use at least 1"),
        ({"shard_bytes": 0}, "must not be negative"),
    ],
)
def test_options_out_of_bounds_are_refused(text: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(options(text, **changes))
    assert_nothing_is_left(text)


def test_progress_runs_to_the_end_of_both_passes(text: Path) -> None:
    seen: list[PrepareProgress] = []
    manifest = prepare(options(text), seen.append)
    size = text.stat().st_size
    assert {progress.bytes_total for progress in seen} == {size}
    assert seen[0].phase == "tokenizer"
    assert (seen[-1].phase, seen[-1].bytes_read, seen[-1].documents) == ("tokens", size, 80)
    assert seen[-1].sequences == manifest.train.sequences + manifest.heldout.sequences
