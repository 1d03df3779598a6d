"""Is what a node handed in the thing it should be? Form only: size, shape, count, finite.

Called before the core hears of a result, so that a bad blob never becomes an event. Scores
must be possible as well: no log-likelihood is above 0, and no router that learned anything is
much worse than a uniform guess. Whether a result is honest work is for audits to find.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.model_config import check_expert_config
from smalltalk_fed.core.units import HELDOUT, BlobRef, Result, UnitKey, UnitKind
from smalltalk_fed.errors import DamagedBlob, Malformed, PeerError, Refused
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.mixture.audit import decode_opinion, uniform_nats
from smalltalk_fed.mixture.idlists import decode_experts
from smalltalk_fed.mixture.scores import decode_scores, step_nats
from smalltalk_fed.mixture.silo_prices import decode_counts
from smalltalk_fed.wire.tensors import check_finite, check_weights, expected_llama_tensors

WORST_MEAN = 1.5  # times a uniform guess's score: the mean of a block must be better


def check_result(
    manifest: RunManifest, result: Result, blobs: BlobStore, redo: bool = False
) -> None:
    """Check every output of `result` against the manifest.

    `redo`: it is an opinion for which a router's round is trained again.

    Raises:
        Refused: a blob was not uploaded.
        Malformed: a blob is not what its name says.
    """
    key = UnitKey.parse(result.unit_id)
    for ref in result.outputs:
        if not blobs.has(ref.digest):
            raise Refused(f"output '{ref.name}' of {result.unit_id} was not uploaded; put it first")
        if blobs.size(ref.digest) != ref.size:
            raise Malformed(f"output '{ref.name}' of {result.unit_id} has another size than said")
        try:
            _check_output(manifest, key, ref, blobs, redo)
        except DamagedBlob:  # our disk's fault: it was moved aside, and must come again
            raise Refused(
                f"output '{ref.name}' of {result.unit_id} was damaged; put it again"
            ) from None
        except (ValueError, PeerError) as error:
            raise Malformed(f"output '{ref.name}' of {result.unit_id}: {error}") from None


def _check_output(
    manifest: RunManifest, key: UnitKey, ref: BlobRef, blobs: BlobStore, redo: bool
) -> None:
    if ref.name == "scores":
        data = blobs.get(ref.digest)
        scores = decode_scores(data, manifest.config.router.chunk_sequences)
        _check_range(manifest, scores, step_nats(data))
    elif ref.name == "audit":
        decode_opinion(manifest, UnitKey.parse(key.target), blobs.get(ref.digest), redo)
    elif ref.name == "experts":
        if key.index == HELDOUT:
            count = manifest.heldout_sequences
        else:
            start, stop = manifest.shard_range(key.index)
            count = stop - start
        decode_experts(blobs.get(ref.digest), count, manifest.experts)
    elif ref.name == "counts":
        floor = manifest.config.private.count_floor
        decode_counts(blobs.get(ref.digest), manifest.experts, floor)
    elif ref.name == "config":
        check_expert_config(manifest, blobs.get(ref.digest))
    elif ref.name in ("parameters", "weights") or key.kind is UnitKind.SILO_BLOCK:
        path = blobs.path(ref.digest)
        router = key.kind in (UnitKind.ROUTER_ROUND, UnitKind.SILO_BLOCK)
        if not router and manifest.config.expert.init not in ("fresh", "seed"):
            check_finite(path)  # a pretrained model has a shape of its own
            return
        shape = manifest.config.router.model if router else manifest.config.expert.model
        check_weights(path, expected_llama_tensors(shape, manifest.vocabulary))


def _check_range(manifest: RunManifest, scores: NDArray[np.float32], step: float) -> None:
    """Raises ValueError for scores that no router gives."""
    highest, mean = float(scores.max()), float(scores.mean(dtype=np.float64))
    if highest > step:
        raise ValueError(f"a score of {highest:g} is above 0, which no log-likelihood is")
    worst = -WORST_MEAN * uniform_nats(manifest)
    if mean < worst:
        raise ValueError(
            f"the mean score of {mean:.1f} is far below a uniform guess; {worst:.1f} is allowed"
        )
