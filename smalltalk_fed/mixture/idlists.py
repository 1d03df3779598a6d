"""Lists of sequence ids, and of experts per sequence, as bytes.

An id list tells a node which sequences to train on or to score, in that order; an expert list is
the output of a `shard` unit, one expert for every sequence of a slice in id order.

Layouts, little-endian, header 16 bytes:
    ids      "STID", version u8, width u8 (2, 4 or 8), two zero bytes, n u64, uint[n]
    experts  "STEX", version u8, width u8 (1 or 2), two zero bytes, n u64, uint[n]
The width is the narrowest that holds the largest id, and for experts 1 up to 256 of them.

Rules: order and repetitions are kept. Bytes that don't follow the layout are a BadBlob (a
ValueError) that says why; nothing is allocated that the bytes at hand don't fill. Not
compressed: the carriers stream blobs as they are.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smalltalk_fed.errors import BadBlob

HEADER_BYTES = 16

_VERSION = 1
_HEADER = struct.Struct("<4sBB2sQ")
_IDS, _EXPERTS = b"STID", b"STEX"
_MAX_EXPERTS = 1 << 16


def encode_ids(ids: ArrayLike) -> bytes:
    """Encode sequence ids, int[n] from 0 to 2**63 - 1, in their order.

    Raises ValueError for negative ids, or what isn't a list of integers.
    """
    ids_n = _integers(ids, "ids")
    largest = int(ids_n.max()) if ids_n.size else 0
    if ids_n.size and int(ids_n.min()) < 0:
        raise ValueError(f"sequence ids are not negative, but {int(ids_n.min())} is in the list")
    width = 2 if largest < 1 << 16 else 4 if largest < 1 << 32 else 8
    return _pack(_IDS, width, ids_n)


def decode_ids(data: bytes, limit: int | None = None) -> NDArray[np.int64]:
    """Decode an id list to int64[n]; `limit` is one more than the largest id there can be.

    Raises ValueError, naming what is wrong, for anything that doesn't follow the layout.
    """
    ids = _unpack(data, _IDS, "id list", (2, 4, 8))
    bound = (1 << 63) if limit is None else limit
    if ids.size and int(ids.max()) >= bound:
        raise BadBlob(f"the id list holds sequence {int(ids.max())}, but ids end at {bound - 1}")
    return ids.astype(np.int64)


def encode_experts(expert_N: ArrayLike, experts: int) -> bytes:
    """Encode one expert a sequence, int[N], each below `experts`.

    Raises ValueError for an expert out of range, or what isn't a list of integers.
    """
    width = _expert_width(experts)
    numbers = _integers(expert_N, "experts")
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < experts:
        raise ValueError(
            f"experts must be within 0 and {experts - 1}, but range "
            f"from {int(numbers.min())} to {int(numbers.max())}"
        )
    return _pack(_EXPERTS, width, numbers)


def decode_experts(data: bytes, expected_n: int, experts: int) -> NDArray[np.int32]:
    """Decode an expert list to int32[expected_n].

    Raises ValueError, naming what is wrong, for another layout, count or an unknown expert.
    """
    numbers = _unpack(data, _EXPERTS, "expert list", (_expert_width(experts),))
    if numbers.size != expected_n:
        raise BadBlob(
            f"the expert list holds {numbers.size} sequences where {expected_n} are expected"
        )
    if numbers.size and int(numbers.max()) >= experts:
        raise BadBlob(f"the expert list names expert {int(numbers.max())}, but there are {experts}")
    return numbers.astype(np.int32)


def _expert_width(experts: int) -> int:
    if not 1 <= experts <= _MAX_EXPERTS:
        raise ValueError(f"the number of experts must be within 1 and {_MAX_EXPERTS}")
    return 1 if experts <= 256 else 2


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a list, not of shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise ValueError(f"{name} must be integers that int64 holds, not {array.dtype}")
    return array.astype(np.int64, copy=False)


def _pack(magic: bytes, width: int, values: NDArray[np.int64]) -> bytes:
    header = _HEADER.pack(magic, _VERSION, width, bytes(2), values.size)
    return header + values.astype(f"<u{width}").tobytes()


def _unpack(data: bytes, magic: bytes, what: str, widths: tuple[int, ...]) -> NDArray[np.integer]:
    """Return the numbers as a view of the bytes, so that a false count costs nothing."""
    if len(data) < HEADER_BYTES:
        raise BadBlob(f"an {what} has a header of {HEADER_BYTES} bytes, got {len(data)}")
    found, version, width, zeros, n = _HEADER.unpack_from(data)
    if found != magic or zeros != bytes(2):
        raise BadBlob(f"these bytes are not an {what}: the header is another one")
    if version != _VERSION:
        raise BadBlob(f"{what} of version {version}, but only {_VERSION} is understood")
    if width not in widths:
        allowed = " or ".join(map(str, widths))
        raise BadBlob(f"an {what} has {allowed} bytes a sequence here, not {width}")
    if len(data) != HEADER_BYTES + n * width:
        raise BadBlob(
            f"an {what} of {n} sequences has {HEADER_BYTES + n * width} bytes, got {len(data)}"
        )
    return np.frombuffer(data, dtype=f"<u{width}", offset=HEADER_BYTES)
