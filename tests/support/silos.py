"""Silos that are parts of one tiny corpus, and runs over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from support.two_kinds import LENGTH, VOCABULARY

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_private_manifest
from smalltalk_fed.data.corpus import TokenCorpus

TINY = {"hidden": 16, "layers": 1, "heads": 2, "feed_forward": 32}


@dataclass(frozen=True)
class Picked:
    """Some rows of a split, numbered anew."""

    split: Any
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        return self.split.rows(self.ids[np.asarray(ids)], tokens)


@dataclass(frozen=True)
class Silo:
    """A silo's text."""

    train: Picked
    heldout: Picked


def by_kind(corpus: TokenCorpus) -> list[Silo]:
    """Two silos, one of each of the two kinds of text."""
    return [
        Silo(
            Picked(corpus.train, np.arange(kind, len(corpus.train), 2)),
            Picked(corpus.heldout, np.arange(kind, len(corpus.heldout), 2)),
        )
        for kind in (0, 1)
    ]


def private_run(experts: int, **changes: dict[str, Any]) -> RunManifest:
    """A manifest of a tiny private run; changes are tables of run.toml."""
    table: dict[str, Any] = {
        "run": {"seed": 5, "experts": experts, "regime": "private"},
        "sequence": {"length": LENGTH, "prefix": 8},
        "private": {"exchange_rounds": 2, "count_floor": 2, "price_rounds": 2, "price_step": 1.0},
        "router": {
            "model": TINY,
            "rounds": 3,
            "chunk_sequences": 40,
            "batch_sequences": 8,
            "optimizer": {"learning_rate": 0.02, "schedule": "constant", "clip": 1.0},
        },
        "expert": {
            "model": TINY,
            "steps": 12,
            "batch_sequences": 8,
            "optimizer": {"learning_rate": 0.02, "warmup_steps": 2, "clip": 1.0},
        },
        "compute": {"threads": 1, "score_batch": 16},
    }
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}
    return make_private_manifest(parse_config(table, "the test"), "7" * 64, VOCABULARY, "run-1", 0)
