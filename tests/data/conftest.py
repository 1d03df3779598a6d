"""What several tests of this room need: small corpora on disk, written without `prepare`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalltalk_fed.config.manifest import (
    CorpusManifest,
    ShardEntry,
    SplitManifest,
    canonical_json,
)


def _write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[Any]], Path]:
    """Write records as .jsonl."""
    return _write_jsonl


@pytest.fixture
def make_corpus() -> Callable[..., Path]:
    """Write a corpus folder of given shards: arrays [n, S] of token ids."""
    return _make_corpus


def _make_corpus(
    folder: Path,
    train: list[np.ndarray],
    heldout: list[np.ndarray],
    vocabulary: int = 300,
    dtype: str = "uint16",
) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    splits = {}
    for name, shards in (("train", train), ("heldout", heldout)):
        entries = []
        for number, rows in enumerate(shards):
            file, data = f"{name}-{number:05d}.bin", rows.astype(f"<{np.dtype(dtype).str[1:]}")
            (folder / file).write_bytes(data.tobytes())
            digest = hashlib.sha256(data.tobytes()).hexdigest()
            entries.append(ShardEntry(file=file, sequences=len(rows), sha256=digest))
        splits[name] = SplitManifest(shards=tuple(entries), documents=len(entries))
    manifest = CorpusManifest(
        sequence_tokens=train[0].shape[1],
        dtype=dtype,
        vocabulary=vocabulary,
        tokenizer_sha256=hashlib.sha256(b"{}").hexdigest(),
        **splits,
    )
    (folder / "corpus.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))
    return folder
