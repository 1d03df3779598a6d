"""A small corpus of two kinds of text, a run over it, and weights to train."""

from pathlib import Path

import pytest
import torch
from support.two_kinds import LENGTH, VOCABULARY, write_two_kinds

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import (
    make_manifest,
)
from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.model.build import build_model

TRAIN, HELDOUT = 96, 20


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def write_corpus(folder: Path) -> TokenCorpus:
    """A corpus of two kinds of text, as `prepare` would write it."""
    return write_two_kinds(folder, TRAIN, HELDOUT)


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
