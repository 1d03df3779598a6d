"""How much memory and disk the units of a run need, from the shapes in its manifest.

Rules: estimates on the safe side, for refusing a run before anything is built; everything is
counted at its largest: the unit that needs most decides. What is counted: weights, gradients
and AdamW's two moments in fp32, the copy that a checkpoint is written from, activations of as
many sequences as are computed at once, one block of logits, and the process itself. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.units import OF_A_SILO, UnitKind

STATE_BYTES = 16  # a parameter: weight, gradient, two moments
CHECKPOINT_BYTES = 12  # a parameter: weight and two moments
WEIGHT_BYTES = 4
CHECKPOINTS = 3  # two that are kept, and the one that is being written
# Python with torch; on a GPU also the driver's and the libraries' part in this machine's memory.
PROCESS_BYTES, GPU_PROCESS_BYTES = 700_000_000, 3_000_000_000
GPU_CONTEXT_BYTES = 700_000_000
# As the training loop has them; a test compares.
CACHED_TOKENS, CACHED_PARAMETERS = 1024, 1_000_000
PLAIN_ATTENTION_TOKENS = 512
CPU_LOGITS_BYTES, GPU_LOGITS_BYTES = 1 << 27, 1 << 29
LOGITS_COPIES = 3  # logits, probabilities, their gradient
PRIVATE_KINDS = (*OF_A_SILO, UnitKind.TRAIN_EXPERT)
SHARED_KINDS = tuple(kind for kind in UnitKind if kind not in OF_A_SILO)
PLAN_BYTES = 64  # that dividing a slice takes for each sequence and expert


@dataclass(frozen=True)
class Memory:
    """Bytes in this machine's memory and in one GPU's (0 where a CPU computes)."""

    host_bytes: int
    gpu_bytes: int


def memory_need(manifest: RunManifest, *, on_gpu: bool) -> Memory:
    """The most that one unit of the run takes, the process included."""
    config, vocabulary = manifest.config, manifest.vocabulary
    expert, router = config.expert, config.router
    length, prefix = config.sequence.length, config.sequence.prefix
    router_tokens = prefix if router.train_tokens == "prefix" else length
    rows = -(-expert.batch_sequences // expert.accumulate)
    trainings = (
        _training(expert.model, vocabulary, rows, length, on_gpu),
        _training(router.model, vocabulary, router.batch_sequences, router_tokens, on_gpu),
    )
    chunk = max(config.router.chunk_sequences, manifest.heldout_sequences)
    routers = manifest.experts * WEIGHT_BYTES * router.model.parameters(vocabulary)
    scoring = routers + _forward(router.model, vocabulary, config.compute.score_batch, prefix)
    dividing = routers + PLAN_BYTES * chunk * manifest.experts  # the files, and the plan
    parameters = max(shape.parameters(vocabulary) for shape in (expert.model, router.model))
    copies = (CHECKPOINT_BYTES + WEIGHT_BYTES) * parameters  # of a checkpoint, and of weights
    computing = max(*trainings, scoring)
    if on_gpu:
        host = GPU_PROCESS_BYTES + max(copies, dividing)
        return Memory(host, GPU_CONTEXT_BYTES + computing)
    return Memory(PROCESS_BYTES + max(max(trainings) + copies, scoring + dividing), 0)


def disk_need(manifest: RunManifest, kind: UnitKind | None = None) -> int:
    """Bytes that a unit of this kind takes while it is in work; without one, the largest."""
    if kind is None:
        kinds = PRIVATE_KINDS if is_private(manifest) else SHARED_KINDS
        return max(disk_need(manifest, kind) for kind in kinds)
    vocabulary = manifest.vocabulary
    expert = manifest.config.expert.model.parameters(vocabulary)
    router = manifest.config.router.model.parameters(vocabulary)
    weights, routers = size_limit(manifest, "weights"), size_limit(manifest, "parameters")
    ids = 64 + 8 * manifest.train_sequences
    match kind:
        case UnitKind.ROUTER_ROUND:
            return CHECKPOINTS * CHECKPOINT_BYTES * router + 2 * routers + ids
        case UnitKind.SHARD:
            return manifest.experts * routers
        case UnitKind.TRAIN_SEED | UnitKind.TRAIN_EXPERT:
            # Weights: those that it begins from, those on their way out, the finished ones.
            return CHECKPOINTS * CHECKPOINT_BYTES * expert + 3 * weights + ids
        case UnitKind.EVALUATE:
            return weights + 64 + 2 * manifest.heldout_sequences
        case UnitKind.SILO_BLOCK:
            own = max(len(experts) for experts in seat_experts(manifest.config))
            return own * (CHECKPOINTS * CHECKPOINT_BYTES * router + 3 * routers)
        case UnitKind.COUNT:
            return manifest.experts * routers  # the scores of the held-out text are smaller
        case UnitKind.EVALUATE_SILO:
            return manifest.experts * (routers + weights)
        case UnitKind.AUDIT:
            return weights + manifest.experts * routers + ids


def _training(shape: ModelShape, vocabulary: int, rows: int, tokens: int, on_gpu: bool) -> int:
    parameters = shape.parameters(vocabulary)
    if not on_gpu and parameters <= CACHED_PARAMETERS:
        rows = min(rows, max(1, CACHED_TOKENS // tokens))
    state = (STATE_BYTES + 2 * on_gpu) * parameters  # bfloat16 copies on a GPU
    number_bytes = 3 if on_gpu else 4  # most activations are bfloat16 there, not all
    kept = number_bytes * shape.layers * rows * tokens * _numbers_a_token(shape, tokens)
    return state + kept + _logits(vocabulary, rows * tokens, on_gpu)


def _forward(shape: ModelShape, vocabulary: int, rows: int, tokens: int) -> int:
    """Without gradients only one layer's numbers stand at a time."""
    return 2 * 4 * rows * tokens * _numbers_a_token(shape, tokens) + _logits(
        vocabulary, rows * tokens, True
    )


def _numbers_a_token(shape: ModelShape, tokens: int) -> int:
    """Numbers that a layer keeps for the way back, for each token."""
    attention = shape.heads * tokens // 2 if tokens <= PLAIN_ATTENTION_TOKENS else 0
    return 10 * shape.hidden + 4 * shape.feed_forward_width + attention


def _logits(vocabulary: int, tokens: int, on_gpu: bool) -> int:
    block = GPU_LOGITS_BYTES if on_gpu else CPU_LOGITS_BYTES
    return LOGITS_COPIES * min(block, 4 * vocabulary * tokens)
