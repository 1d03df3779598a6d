"""Score blocks: one router's scores for one chunk, as int16 fixed point.

A score is the log-likelihood of a prefix (equation 4 of arXiv 2410.03529), some hundreds of nats
below zero; fp16 has a resolution of 0.5 nats there. A block holds whole multiples of a step of
1/32 nat around a centre, off by 1/64 nat at most. When the block's range needs more than int16
can hold (about 2,000 nats), the step is doubled until it fits, and the error stays below a step.

Layout, little-endian, 20 bytes and two a score:
    "STSB", version u8, three zero bytes, n u32, centre f32, step f32, int16[n]

Rules: one byte string per set of decoded scores (the centre is a multiple of the step, and the
choice of step is stable under rounding), so encoding a decoded block gives the same bytes and
the digests of two nodes' blocks can be compared. What doesn't follow the layout is a BadBlob
(a ValueError) that says why. Nothing here knows what a router is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smalltalk_fed.errors import BadBlob

FINEST_STEP_NATS = 1 / 32
LARGEST_SCORE_NATS = float(1 << 24)
HEADER_BYTES = 20

_MAGIC = b"STSB"
_VERSION = 1
_HEADER = struct.Struct("<4sB3sIff")
_COARSEST_STEP_NATS = 1024.0
# The range, in double steps, that fits for certain: 2 * (32700 + 1) + 1 places around a centre
# that float32 may round by up to 32 steps stay within 32767.
_RANGE_DOUBLE_STEPS = 32700


def encode_scores(scores_N: ArrayLike) -> bytes:
    """Encode the scores of one router, float32[N] in nats, N below 2**32.

    Raises ValueError for scores that aren't finite, or are beyond 2**24 nats.
    """
    scores = np.asarray(scores_N, dtype=np.float32)
    if scores.ndim != 1 or scores.size >= 1 << 32:
        raise ValueError(f"a score block holds a list of scores, not shape {scores.shape}")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"score {bad} of the block is {scores[bad]}, not a finite number")
    if scores.size == 0:
        return _HEADER.pack(_MAGIC, _VERSION, bytes(3), 0, 0.0, FINEST_STEP_NATS)
    low, high = float(scores.min()), float(scores.max())
    if max(-low, high) > LARGEST_SCORE_NATS:
        raise ValueError(f"scores must be within 2**24 nats, but range from {low} to {high}")
    # Exact: a float32 has 24 bits, and below 1/32 it has some only within 2**19.
    steps = np.rint(scores.astype(np.float64) / FINEST_STEP_NATS)
    step = FINEST_STEP_NATS
    while not _surely_fits(steps):
        steps, step = np.rint(steps / 2), step * 2
    centre = np.float32(np.floor((steps.min() + steps.max()) / 2) * step + 0.0)  # no -0.0
    steps -= float(centre) / step
    header = _HEADER.pack(_MAGIC, _VERSION, bytes(3), scores.size, float(centre), step)
    return header + steps.astype("<i2").tobytes()


def decode_scores(data: bytes, expected: int | None = None) -> NDArray[np.float32]:
    """Decode a score block to float32[N], in nats.

    `expected` is the number of scores that the block must hold, if that is known.
    Raises ValueError, naming what is wrong, for anything that doesn't follow the layout.
    """
    if len(data) < HEADER_BYTES:
        raise BadBlob(f"a score block has a header of {HEADER_BYTES} bytes, got {len(data)}")
    magic, version, zeros, n, centre, step = _HEADER.unpack_from(data)
    if magic != _MAGIC or zeros != bytes(3):
        raise BadBlob("these bytes are not a score block: the header is another one")
    if version != _VERSION:
        raise BadBlob(f"score block of version {version}, but only {_VERSION} is understood")
    if len(data) != HEADER_BYTES + 2 * n:
        raise BadBlob(
            f"a score block of {n} scores has {HEADER_BYTES + 2 * n} bytes, got {len(data)}"
        )
    if expected is not None and n != expected:
        raise BadBlob(f"the score block holds {n} scores where {expected} are expected")
    allowed = FINEST_STEP_NATS <= step <= _COARSEST_STEP_NATS  # false for NaN
    if not allowed or not np.log2(step).is_integer():
        raise BadBlob(f"a score block's step must be a power of two in 1/32 to 1024, not {step}")
    if not abs(centre) <= LARGEST_SCORE_NATS or not (centre / step).is_integer():
        raise BadBlob(f"a score block's centre must be a multiple of its step, not {centre}")
    steps = np.frombuffer(data, dtype="<i2", offset=HEADER_BYTES)
    return (steps * step + centre).astype(np.float32)


def step_nats(data: bytes) -> float:
    """Return the step, in nats, of a score block that `decode_scores` takes."""
    return float(_HEADER.unpack_from(data)[5])


def stack_score_blocks(blocks: Sequence[bytes], expected: int) -> NDArray[np.float32]:
    """Decode the blocks of all E routers for one chunk into scores_NxE, float32, row-major.

    Filled column by column, so that nothing but the result stands in memory.
    Raises ValueError, naming the expert whose block is wrong.
    """
    scores_NxE = np.empty((expected, len(blocks)), dtype=np.float32)
    for expert, block in enumerate(blocks):
        try:
            scores_NxE[:, expert] = decode_scores(block, expected)
        except ValueError as error:
            raise BadBlob(f"expert {expert}: {error}") from error
    return scores_NxE


def _surely_fits(steps: NDArray[np.float64]) -> bool:
    """Tell whether these whole steps fit into int16, judged after halving them once more.

    Scores that were decoded go through the same roundings unchanged up to their step, and the
    answer there looks only at a rounding still to come: it is the same answer, so the encoding
    is stable.
    """
    return bool(np.rint(steps.max() / 2) - np.rint(steps.min() / 2) <= _RANGE_DOUBLE_STEPS)
