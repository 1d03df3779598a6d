"""A corpus of a few kilobytes and a run over it that trains in milliseconds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from smalltalk_fed.config.manifest import (
    CorpusManifest,
    RunManifest,
    ShardEntry,
    SplitManifest,
    canonical_json,
    make_manifest,
)
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.data.corpus import TokenCorpus

VOCABULARY, LENGTH, TRAIN, HELDOUT = 32, 16, 96, 20
SHAPE = {"hidden": 8, "layers": 1, "heads": 2, "feed_forward": 8}


def write_tiny_corpus(
    folder: Path, seed: int = 1, *, vocabulary: int = VOCABULARY, length: int = LENGTH
) -> TokenCorpus:
    """A corpus folder as `prepare` would write it, of random tokens."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    random = np.random.default_rng(seed)
    splits = {}
    for name, count in (("train", TRAIN), ("heldout", HELDOUT)):
        data = random.integers(0, vocabulary, (count, length)).astype("<u2").tobytes()
        (folder / f"{name}-00000.bin").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        entry = ShardEntry(file=f"{name}-00000.bin", sequences=count, sha256=digest)
        splits[name] = SplitManifest(shards=(entry,), documents=count)
    manifest = CorpusManifest(
        sequence_tokens=length,
        dtype="uint16",
        vocabulary=vocabulary,
        tokenizer_sha256=hashlib.sha256(b"{}").hexdigest(),
        **splits,
    )
    (folder / "corpus.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))
    return TokenCorpus.open(folder)


def tiny_manifest(corpus: TokenCorpus, **changes: dict[str, object]) -> RunManifest:
    """A run of two experts; `changes` are tables of run.toml."""
    config = RunConfig.model_validate(_tiny_table(changes))
    return make_manifest(config, corpus.manifest, "run-1", 0)


def tiny_toml(corpus: TokenCorpus, **changes: dict[str, object]) -> str:
    """The same as a run.toml."""

    def lines(name: str, table: dict[str, object]) -> list[str]:
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        plain = [f"{k} = {json.dumps(v)}" for k, v in table.items() if k not in inner]
        below = [line for k, v in inner.items() for line in lines(f"{name}.{k}", v)]
        return [f"[{name}]", *plain, *below]

    sections = [line for name, table in _tiny_table(changes).items() for line in lines(name, table)]
    return "\n".join(sections) + "\n"


def _tiny_table(changes: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    optimizer = {"learning_rate": 0.01, "clip": 1.0}
    table: dict[str, dict[str, object]] = {
        "run": {"experts": 2, "poll_s": 1.0},
        "sequence": {"length": LENGTH, "prefix": 8},
        "router": {
            "model": SHAPE,
            "rounds": 2,
            "chunk_sequences": 40,
            "batch_sequences": 8,
            "optimizer": optimizer,
        },
        "expert": {"model": SHAPE, "steps": 4, "batch_sequences": 4, "optimizer": optimizer},
        "compute": {"threads": 1, "score_batch": 16},
    }
    for section, values in changes.items():
        table[section] = table.get(section, {}) | values
    return table
