"""What a router unit's result is made of, without training: right in form, and small."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.mixture.scores import encode_scores
from smalltalk_fed.wire.tensors import expected_llama_tensors


def router_weights(manifest: RunManifest, seed: int) -> bytes:
    """A router's parameters as a file of the right shapes."""
    random = np.random.default_rng(seed)
    shapes = expected_llama_tensors(manifest.config.router.model, manifest.vocabulary)
    return save({name: random.random(shape, np.float32) for name, shape in shapes.items()})


def router_result(manifest: RunManifest, blobs: BlobStore, unit_id: str) -> Result:
    """A result of this `router_round` unit; its outputs are in the store, as if uploaded."""
    key = UnitKey.parse(unit_id)
    seed = 100 * key.index + key.expert
    outputs = [blobs.put("parameters", router_weights(manifest, seed))]
    if key.index < manifest.config.router.rounds:
        count = manifest.config.router.chunk_sequences
        # As hard as the text is for all routers, and a little of each one's own.
        hard = np.random.default_rng(key.index).uniform(10, 40, count)
        scores = np.random.default_rng(seed).normal(0, 2, count) - hard
        outputs.append(blobs.put("scores", encode_scores(scores)))
    return Result(unit_id, tuple(outputs), {"loss_mean": 5.0})
