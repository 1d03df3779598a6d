"""A small corpus of two kinds of text, a run over it, and weights to train."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import (
    CorpusManifest,
    ShardEntry,
    SplitManifest,
    canonical_json,
    make_manifest,
)
from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.model.build import build_model

VOCABULARY, LENGTH, TRAIN, HELDOUT = 32, 16, 96, 20


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def _rows(count: int, seed: int) -> np.ndarray:
    """Sequences of two kinds: counting up in the lower, or down in the upper half of the tokens."""
    random = np.random.default_rng(seed)
    half = VOCABULARY // 2
    kind_Nx1 = (np.arange(count) % 2)[:, None]
    start_Nx1 = random.integers(0, half, (count, 1))
    steps_S = np.arange(LENGTH)
    noise_NxS = random.integers(0, 2, (count, LENGTH)).cumsum(axis=1)
    up = (start_Nx1 + steps_S + noise_NxS) % half
    down = half + (start_Nx1 - steps_S - noise_NxS) % half
    return np.where(kind_Nx1, up, down).astype("<u2")


def write_corpus(folder: Path) -> TokenCorpus:
    """A corpus folder as `prepare` would write it."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    splits = {}
    for name, count, seed in (("train", TRAIN, 1), ("heldout", HELDOUT, 2)):
        data = _rows(count, seed).tobytes()
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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def make_run(corpus):
    """A manifest of a tiny run; changes are tables of run.toml."""

    def make(**changes):
        table = {
            "run": {"seed": 5, "experts": 2},
            "sequence": {"length": LENGTH, "prefix": 8},
            "router": {
                "model": {"hidden": 16, "layers": 1, "heads": 2, "feed_forward": 32},
                "rounds": 3,
                "chunk_sequences": 40,
                "batch_sequences": 8,
                "optimizer": {"learning_rate": 0.02, "schedule": "constant", "clip": 1.0},
            },
            "expert": {
                "model": {"hidden": 16, "layers": 1, "heads": 2, "feed_forward": 32},
                "steps": 12,
                "batch_sequences": 8,
                "optimizer": {"learning_rate": 0.02, "warmup_steps": 2, "clip": 1.0},
            },
            "compute": {"threads": 1, "score_batch": 16},
        }
        for section, values in changes.items():
            table[section] = {**table[section], **values} if section in table else values
        config = parse_config(table, "the test")
        return make_manifest(config, corpus.manifest, "run-1", 0)

    return make


@pytest.fixture
def model():
    shape = ModelShape(hidden=16, layers=1, heads=2, feed_forward=32)
    return build_model(shape, VOCABULARY, LENGTH, b"key")


@pytest.fixture
def fast_optimizer():
    return Optimizer(learning_rate=0.02, warmup_steps=2, clip=1.0)
