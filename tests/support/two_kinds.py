"""A small corpus of two kinds of text that any router can tell apart, and learn in moments."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from smalltalk_fed.config.manifest import (
    CorpusManifest,
    ShardEntry,
    SplitManifest,
    canonical_json,
)
from smalltalk_fed.data.corpus import TokenCorpus

VOCABULARY, LENGTH = 32, 16


def rows(count: int, seed: int) -> np.ndarray:
    """Sequences, in turns counting up in the lower and down in the upper half of the tokens."""
    random = np.random.default_rng(seed)
    half = VOCABULARY // 2
    kind_Nx1 = (np.arange(count) % 2)[:, None]
    start_Nx1 = random.integers(0, half, (count, 1))
    steps_S = np.arange(LENGTH)
    noise_NxS = random.integers(0, 2, (count, LENGTH)).cumsum(axis=1)
    up = (start_Nx1 + steps_S + noise_NxS) % half
    down = half + (start_Nx1 - steps_S - noise_NxS) % half
    return np.where(kind_Nx1, up, down).astype("<u2")


def write_two_kinds(folder: Path, train: int, heldout: int) -> TokenCorpus:
    """A corpus folder as `prepare` would write it."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    splits = {}
    for name, count, seed in (("train", train, 1), ("heldout", heldout, 2)):
        data = rows(count, seed).tobytes()
        file = f"{name}-00000.bin"
        (folder / file).write_bytes(data)
        entry = ShardEntry(file=file, sequences=count, sha256=hashlib.sha256(data).hexdigest())
        splits[name] = SplitManifest(shards=(entry,), documents=count)
    manifest = CorpusManifest(
        sequence_tokens=LENGTH,
        dtype="uint16",
        vocabulary=VOCABULARY,
        tokenizer_sha256=hashlib.sha256(b"{}").hexdigest(),
        **splits,
    )
    (folder / "corpus.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))
    return TokenCorpus.open(folder)
