"""Counts of what routers win in silos, and the prices that follow from them.

Every silo counts how many of its held-out prefixes each router wins, `argmax_e (score_e -
price_e)`, and sends that row and nothing finer (method.md, section 2, "Private data"). Dual
ascent moves each price towards the win of its expert's own part of the text:

    price_e += step * (sum_k w_k * c[k, e] / sum_e' c[k, e'] - target_e)

w_k is silo k's part of all training text. Rows are taken relative to their own sums, so that
silos that hold out more don't weigh more. An entry below the floor is withheld, and larger ones
are rounded down to a multiple of it: a row's sum may be known from elsewhere, and with exact
entries a withheld one would be what is missing. A withheld entry counts as nothing; of a silo
that shows none nothing is known, and the targets are those of the others' text alone.

Layout of a row, little-endian, 12 bytes and four an expert:
    "STCT", version u8, three zero bytes, n u32, uint32[n]
Rules: bytes that don't follow the layout are a BadBlob that says why. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smalltalk_fed.errors import BadBlob

WITHHELD = 0xFFFFFFFF
HEADER_BYTES = 12

_MAGIC = b"STCT"
_VERSION = 1
_HEADER = struct.Struct("<4sB3sI")
_LARGEST_COUNT = 1 << 31


def withhold(counts_E: ArrayLike, floor: int) -> NDArray[np.uint32]:
    """Return what may leave of exact counts, uint32[E]; `WITHHELD` for those below `floor`.

    Raises ValueError for counts that aren't whole numbers from 0, or a floor below 1.
    """
    counts = np.asarray(counts_E)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError(f"counts are one whole number an expert, not {counts_E!r}")
    if floor < 1 or (counts.size and not 0 <= int(counts.min()) <= int(counts.max()) < 1 << 31):
        raise ValueError(f"counts must be within 0 and 2**31, and the floor {floor} at least 1")
    rounded = counts.astype(np.int64) // floor * floor
    return np.where(rounded > 0, rounded, WITHHELD).astype(np.uint32)


def encode_counts(row_E: ArrayLike) -> bytes:
    """Encode a row that went through `withhold`, uint32[E]."""
    row = np.asarray(row_E)
    if row.ndim != 1 or row.dtype != np.uint32:
        raise ValueError(f"a row of counts is uint32, one an expert, not {row.dtype} {row.shape}")
    return _HEADER.pack(_MAGIC, _VERSION, bytes(3), len(row)) + row.astype("<u4").tobytes()


def decode_counts(data: bytes, experts: int, floor: int) -> NDArray[np.uint32]:
    """Decode a row of counts, uint32[experts].

    Raises BadBlob, naming what is wrong, for another layout or number of experts, and for an
    entry that should have been withheld or rounded.
    """
    expected = HEADER_BYTES + 4 * experts
    if len(data) != expected:
        raise BadBlob(
            f"a row of counts for {experts} experts has {expected} bytes, got {len(data)}"
        )
    magic, version, zeros, n = _HEADER.unpack_from(data)
    if magic != _MAGIC or zeros != bytes(3):
        raise BadBlob("these bytes are not a row of counts: the header is another one")
    if version != _VERSION:
        raise BadBlob(f"row of counts of version {version}, but only {_VERSION} is understood")
    if n != experts:
        raise BadBlob(f"the row holds {n} counts where {experts} are expected")
    row = np.frombuffer(data, "<u4", offset=HEADER_BYTES).astype(np.uint32)
    shown = row[row != WITHHELD]
    bad = shown[(shown < floor) | (shown >= _LARGEST_COUNT) | (shown % floor != 0)]
    if bad.size:
        raise BadBlob(
            f"the row holds {int(bad[0])}, but what leaves a silo is a multiple of {floor} or "
            "withheld"
        )
    return row


def expert_shares(
    seats: Sequence[Sequence[int]],
    sequences_K: Sequence[int] | NDArray[np.integer] | NDArray[np.floating],
    experts: int | None = None,
) -> NDArray[np.float64]:
    """Return each expert's part of all training text, float64[E]; 0 of those in no seat.

    `seats[k]` are the experts of seat k, `sequences_K` the training sequences of its silo,
    which its experts share evenly. `experts`: E; by default all are in the seats. Raises
    ValueError when there is no text at all.
    """
    sequences = np.asarray(sequences_K, np.float64)
    if sequences.shape != (len(seats),) or (sequences < 0).any() or not sequences.sum() > 0:
        raise ValueError(f"there must be text, a count for each of {len(seats)} seats")
    share_E = np.zeros(sum(map(len, seats)) if experts is None else experts)
    for own, part in zip(seats, sequences / sequences.sum(), strict=True):
        share_E[list(own)] = part / len(own)
    return share_E


def move_prices(
    prices_E: ArrayLike,
    counts_KxE: ArrayLike,
    seats: Sequence[Sequence[int]],
    sequences_K: Sequence[int] | NDArray[np.integer],
    step: float,
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Move the prices once by all silos' rows of counts; return them, float64[E], and figures.

    `counts_KxE` are rows as they left the silos, `seats` and `sequences_K` as in
    `expert_shares`. An expert in no seat has left: nothing may be counted for it, and its price
    stays. Figures: `off_diagonal`, the part of the text that experts of other seats would win;
    `share_error`, half the sum of the shares' errors; `silent_seats`, silos that show no count.
    Raises ValueError when the shapes don't agree.
    """
    prices = np.asarray(prices_E, np.float64)
    counts = np.asarray(counts_KxE)
    if counts.dtype != np.uint32 or counts.shape != (len(seats), len(prices)):
        raise ValueError(f"counts are uint32, seats by experts, not {counts.dtype} {counts.shape}")
    shown_KxE = np.where(counts == WITHHELD, 0, counts).astype(np.float64)
    row_K = shown_KxE.sum(axis=1)
    speaks_K = row_K > 0
    figures = {"silent_seats": float((~speaks_K).sum())}
    if not speaks_K.any():
        return prices.copy(), figures | {"off_diagonal": 0.0, "share_error": 0.0}
    heard_K = np.where(speaks_K, np.asarray(sequences_K, np.float64), 0.0)
    target_E = expert_shares(seats, heard_K, len(prices))
    part_KxE = shown_KxE / np.where(speaks_K, row_K, 1.0)[:, None]
    part_KxE *= (heard_K / heard_K.sum())[:, None]
    error_E = part_KxE.sum(axis=0) - target_E
    own = sum(part_KxE[k, list(experts)].sum() for k, experts in enumerate(seats))
    figures |= {"off_diagonal": float(1.0 - own), "share_error": float(np.abs(error_E).sum() / 2)}
    return prices + step * error_E, figures
