"""Is what a node handed in the thing it should be? Form only: size, shape, count, finite.

Called before the core hears of a result, so that a bad blob never becomes an event. Whether
a result is honest work is for audits to find.
"""

from __future__ import annotations

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.model_config import check_expert_config
from smalltalk_fed.core.units import HELDOUT, BlobRef, Result, UnitKey, UnitKind
from smalltalk_fed.errors import DamagedBlob, Malformed, PeerError, Refused
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.mixture.idlists import decode_experts
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.wire.tensors import check_finite, check_weights, expected_llama_tensors


def check_result(manifest: RunManifest, result: Result, blobs: BlobStore) -> None:
    """Check every output of `result` against the manifest.

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
            _check_output(manifest, key, ref, blobs)
        except DamagedBlob:  # our disk's fault: it was moved aside, and must come again
            raise Refused(
                f"output '{ref.name}' of {result.unit_id} was damaged; put it again"
            ) from None
        except (ValueError, PeerError) as error:
            raise Malformed(f"output '{ref.name}' of {result.unit_id}: {error}") from None


def _check_output(manifest: RunManifest, key: UnitKey, ref: BlobRef, blobs: BlobStore) -> None:
    if ref.name == "scores":
        decode_scores(blobs.get(ref.digest), manifest.config.router.chunk_sequences)
    elif ref.name == "experts":
        if key.index == HELDOUT:
            count = manifest.heldout_sequences
        else:
            start, stop = manifest.shard_range(key.index)
            count = stop - start
        decode_experts(blobs.get(ref.digest), count, manifest.experts)
    elif ref.name == "config":
        check_expert_config(manifest, blobs.get(ref.digest))
    elif ref.name in ("parameters", "weights"):
        path = blobs.path(ref.digest)
        router = key.kind is UnitKind.ROUTER_ROUND
        if not router and manifest.config.expert.init not in ("fresh", "seed"):
            check_finite(path)  # a pretrained model has a shape of its own
            return
        shape = manifest.config.router.model if router else manifest.config.expert.model
        check_weights(path, expected_llama_tensors(shape, manifest.vocabulary))
