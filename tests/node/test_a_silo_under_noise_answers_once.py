"""With `[privacy]` on a node sends noise, asked again the very same, and no exact count."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from support.tiny_run import LENGTH, VOCABULARY, write_tiny_corpus

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_private_manifest
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.mixture.silo_prices import decode_counts
from smalltalk_fed.train.silo import count_wins
from smalltalk_fed.worksite.folders import Workplace, forget_run
from smalltalk_fed.worksite.work import Done, do_unit

SHAPE = {"hidden": 8, "layers": 1, "heads": 1, "feed_forward": 8}
BLOCK = Unit(UnitKey(UnitKind.SILO_BLOCK, index=1, seat=0))


def manifest_with(**privacy: float) -> RunManifest:
    """Two silos of one expert each."""
    optimizer = {"learning_rate": 0.01, "clip": 1.0}
    table = {
        "run": {"experts": 2, "regime": "private"},
        "sequence": {"length": LENGTH, "prefix": 8},
        "router": {"model": SHAPE, "rounds": 1, "chunk_sequences": 32, "batch_sequences": 8,
                   "optimizer": optimizer},
        "expert": {"model": SHAPE, "steps": 2, "batch_sequences": 4, "optimizer": optimizer},
        "private": {"experts_of": [1, 1], "exchange_rounds": 1, "price_rounds": 2,
                    "count_floor": 1},
        "privacy": privacy,
        "compute": {"threads": 1},
    }  # fmt: skip
    return make_private_manifest(parse_config(table, "test"), "e" * 64, VOCABULARY, "noise", 1)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    corpus = write_tiny_corpus(tmp_path / "corpus")
    manifest = manifest_with(router_noise=1.0, count_noise=500.0)
    (tmp_path / "work").mkdir()
    return Workplace(manifest, corpus, tmp_path / "work", tmp_path / "experts", "cpu")


def answer(place: Workplace, unit: Unit, inputs: dict[str, Path] | None = None) -> Done:
    return do_unit(
        unit, inputs or {}, place, lambda part, figures: None, lambda step, path: None,
        lambda: False,
    )  # fmt: skip


def test_a_block_that_is_asked_for_again_has_the_same_bytes(place: Workplace) -> None:
    first = answer(place, BLOCK)
    forget_run(place)
    assert answer(place, BLOCK).outputs == first.outputs
    assert first.figures["epsilon"] > 0
    assert not [name for name in first.figures if "loss" in name]


def test_what_differs_between_two_silos_of_the_same_text_is_noise(
    place: Workplace, tmp_path: Path
) -> None:
    other = dataclasses.replace(place, folder=tmp_path / "other")
    assert answer(place, BLOCK).outputs != answer(other, BLOCK).outputs


def test_counts_leave_with_noise_alone(place: Workplace, tmp_path: Path) -> None:
    router = bytes(answer(place, BLOCK).outputs["router-0"])
    path = tmp_path / "router"
    path.write_bytes(router)
    ref = BlobRef("", hashlib.sha256(router).hexdigest(), len(router))
    names = ("router-0", "router-1")
    unit = Unit(
        UnitKey(UnitKind.COUNT, index=1, seat=0, turn=0),
        tuple(dataclasses.replace(ref, name=name) for name in names),
        prices=(0.0, 0.0),
    )
    inputs = dict.fromkeys(names, path)
    done = answer(place, unit, inputs)
    exact = count_wins(place.manifest, place.corpus, [router, router], (0.0, 0.0))
    sent = decode_counts(bytes(done.outputs["counts"]), 2, 1)
    assert not np.array_equal(sent, exact)
    assert {"epsilon", "delta"} <= set(done.figures)
    assert answer(place, unit, inputs).outputs == done.outputs
