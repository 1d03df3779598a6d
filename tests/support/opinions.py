"""Runs and opinions for tests of audits: no models, only numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.mixture.audit import Scores, parts_of

SAMPLE = 8
CHUNK = 64


def audit_manifest(
    *, experts: int = 4, heldout: int = 40, **changes: dict[str, Any]
) -> RunManifest:
    """Two rounds over 256 sequences of 64 tokens; `changes` are tables of run.toml."""
    table: dict[str, dict[str, Any]] = {
        "run": {"experts": experts},
        "sequence": {"length": 64, "prefix": 33},
        "router": {"rounds": 2, "chunk_sequences": CHUNK, "model": "router-mini"},
        "expert": {"model": "mini", "steps": 2, "batch_sequences": 2},
        "audit": {"sample_sequences": SAMPLE},
        "compute": {"train_dtype": "float32"},
    }
    for section, values in changes.items():
        table[section] = table.get(section, {}) | values
    return RunManifest(
        run_id="test-run",
        created_unix_s=0,
        config=parse_config(table, "test"),
        corpus_digest="c" * 64,
        tokenizer_sha256="d" * 64,
        vocabulary=300,
        train_sequences=256,
        heldout_sequences=heldout,
    )


def honest_opinion(
    manifest: RunManifest, unit_id: str, seed: int = 0, *, redo: bool = False
) -> dict[str, Scores]:
    """What an auditor of honest work sees: text of 32 predicted tokens at about 4 nats each.

    A router gains 6 nats on its share and 3 on the rest. On its own text a router beats the
    others by 15 nats, and its expert beats it by 20; on other text both know nothing. A round
    that is trained again differs by 0.1 nats.
    """
    target, random = UnitKey.parse(unit_id), np.random.default_rng(seed)
    names = parts_of(manifest, target)
    base = {
        name: random.normal(-128, 12, SAMPLE) for name in dict.fromkeys(map(_text, names))
    }  # one list a kind of text
    gains = {"public_after": 3.0, "own_after": 6.0, "rest_after": 3.0}
    gains |= {"own_router": 15.0, "own_expert": 35.0, "whole": 15.0}
    opinion = {}
    for name in names:
        noise = random.normal(0, 1.0, SAMPLE)
        if name.startswith("router_"):
            noise += np.where(np.arange(SAMPLE) % manifest.experts == int(name[7:]), 15, 0)
        opinion[name] = (base[_text(name)] + gains.get(name, 0.0) + noise).astype(np.float32)
    for name in parts_of(manifest, target, redo)[len(names) :]:
        after_K = opinion[name.replace("_redo", "_after")]
        opinion[name] = (after_K + random.normal(0, 0.1, SAMPLE)).astype(np.float32)
    return opinion


def _text(part: str) -> str:
    return "slice" if part.startswith("router_") else part.split("_")[0]
