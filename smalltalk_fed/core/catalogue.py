"""What each kind of unit must bring, and how large it may be, as the manifest implies."""

from __future__ import annotations

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.core.units import UnitKey, UnitKind

TOKENIZER_BYTES_MAX = 64 << 20  # of the one that a private run hands to its nodes
# Units that train for days: who started one has checkpoints worth waiting for.
LONG = (UnitKind.TRAIN_SEED, UnitKind.TRAIN_EXPERT)


def outputs_of(manifest: RunManifest, key: UnitKey) -> tuple[str, ...]:
    """Names of the blobs that a result of this unit must bring, if the expert's owner allows it.

    Of a seat that the run does not have: none.
    """
    match key.kind:
        case UnitKind.ROUTER_ROUND:
            last = key.index == manifest.config.router.rounds
            return ("parameters",) if last else ("parameters", "scores")
        case UnitKind.SHARD:
            return ("experts",)
        case UnitKind.TRAIN_SEED:
            return ("weights",)
        case UnitKind.TRAIN_EXPERT:
            return ("config", "weights") if manifest.config.expert.collects else ()
        case UnitKind.AUDIT:
            return ("audit",)
        case UnitKind.SILO_BLOCK:
            own = seat_experts(manifest.config)[max(0, key.seat) : key.seat + 1]
            return tuple(f"router-{expert}" for experts in own for expert in experts)
        case UnitKind.COUNT:
            return ("counts",)
        case _:
            return ()


def size_limit(manifest: RunManifest, name: str) -> int:
    """Largest blob of this name in bytes; 0 for a name that none has."""
    match name:
        case "parameters":
            return manifest.router_blob_bytes_max
        case "scores":
            return 64 + 2 * manifest.config.router.chunk_sequences
        case "experts":
            chunk = manifest.config.router.chunk_sequences
            return 64 + 2 * max(chunk, manifest.heldout_sequences)
        case "audit":  # a few scores of each sampled sequence, at most one a router and some more
            return 64 + 2 * manifest.config.audit.sample_sequences * (manifest.experts + 8)
        case "counts":  # one number an expert
            return 64 + 4 * manifest.experts
        case "config":
            return 1 << 16
        case "weights":
            return manifest.expert_blob_bytes_max
        case _ if name.startswith("router-"):
            return manifest.router_blob_bytes_max
        case _:
            return 0
