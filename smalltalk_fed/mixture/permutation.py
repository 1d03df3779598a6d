"""Keyed permutations: who sees which sequence when, without a list of what was used.

A run visits its corpus in passes; each pass is a new permutation of all sequence ids, and chunk
number c is simply the next range of the concatenated passes. A `Permutation` can be evaluated at
any place without memory, so a chunk is a function of the seed and its number alone: nothing is
trained on twice or skipped after a crash, and every machine derives the same ids.

Rules: integers and SHA-256 only, no `numpy.random`, so that the result is the same on every
numpy version and platform (golden values in the tests). The construction is a balanced Feistel
network (Luby and Rackoff 1988) with cycle walking (Black and Rogaway 2002). It is meant to be
statistically good; it is not an encryption.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]

_ROUNDS = 12
_MIN_HALF_BITS = 4  # chi-squared tests over the orders of tiny n see a bias below
_BLOCK = 1 << 15  # places worked on at a time: temporaries stay in the cache
_DOMAIN = b"smalltalk-fed derive_key 1\0"


def derive_key(seed: int, *purpose: str | int) -> bytes:
    """Derive 32 key bytes from a run's seed and what the key is for.

    The SHA-256 of an unambiguous encoding: every part is tagged with its type and length, so
    ("ab", "c"), ("a", "bc"), (1,) and ("1",) all give different keys.
    Raises TypeError for a part that is neither str nor int (bool included).
    """
    digest = hashlib.sha256(_DOMAIN)
    for part in (seed, *purpose):
        if isinstance(part, str):
            tag, data = b"s", part.encode("utf-8")
        elif isinstance(part, bool | np.bool_):
            raise TypeError("derive_key takes str and int parts, not bool")
        else:
            tag, data = b"i", str(operator.index(part)).encode("ascii")
        digest.update(tag + len(data).to_bytes(8, "little") + data)
    return digest.digest()


class Permutation:
    """A keyed bijection of range(n), computable at any place without memory."""

    def __init__(self, n: int, key: bytes) -> None:
        """Take the size n >= 0 (at most 2**62) and any key bytes.

        Raises ValueError for an n out of range.
        """
        self.n = operator.index(n)
        if not 0 <= self.n <= 1 << 62:
            raise ValueError(f"a permutation's size must be within 0 and 2**62, not {n}")
        half_bits = max(_MIN_HALF_BITS, (max(self.n - 1, 0).bit_length() + 1) // 2)
        self._half_bits = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        stream = hashlib.shake_256(b"smalltalk-fed feistel 1\0" + key).digest(8 * _ROUNDS)
        self._round_keys = np.frombuffer(stream, dtype="<u8").astype(np.uint64)

    def forward(self, index: ArrayLike) -> Int64Array:
        """Return the images of the places in `index` (same shape, int64).

        Raises ValueError when an index is outside range(n) or not an integer.
        """
        return self._walk(index, inverse=False)

    def inverse(self, value: ArrayLike) -> Int64Array:
        """Return the places whose images are `value`: inverse(forward(i)) == i."""
        return self._walk(value, inverse=True)

    def range(self, start: int, stop: int) -> Int64Array:
        """Return forward(arange(start, stop)), int64[stop - start]."""
        return self.forward(np.arange(start, stop, dtype=np.int64))

    def _walk(self, index: ArrayLike, inverse: bool) -> Int64Array:
        places = np.asarray(index)
        if places.size == 0:
            return np.zeros(places.shape, dtype=np.int64)
        if places.dtype.kind not in "iu":
            raise ValueError(f"places must be integers, not {places.dtype}")
        if int(places.min()) < 0 or int(places.max()) >= self.n:
            raise ValueError(f"places must be within 0 and {self.n - 1}")
        if self.n == 1:
            return np.zeros(places.shape, dtype=np.int64)
        out = places.astype(np.uint64).reshape(-1)
        step: Callable[[UInt64Array], UInt64Array] = self._decrypt if inverse else self._encrypt
        if self.n <= 1 << 2 * _MIN_HALF_BITS:
            # The fewer the places, the longer the walk: look up what is worked out once.
            step = step(np.arange(1 << 2 * _MIN_HALF_BITS, dtype=np.uint64)).__getitem__
        limit = np.uint64(self.n)
        for start in range(0, out.size, _BLOCK):
            block = step(out[start : start + _BLOCK])
            # Cycle walking: the network permutes a power of four, 256 or at most 4n wide; who
            # lands outside range(n) is sent on, which terminates since its start was inside.
            outside = np.flatnonzero(block >= limit)
            while outside.size:
                block[outside] = step(block[outside])
                outside = outside[block[outside] >= limit]
            out[start : start + _BLOCK] = block
        return out.astype(np.int64).reshape(places.shape)

    def _encrypt(self, x: UInt64Array) -> UInt64Array:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half_bits) | right

    def _decrypt(self, x: UInt64Array) -> UInt64Array:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._round_keys[::-1]:
            left, right = right ^ (_mix(left + key) & self._mask), left
        return (left << self._half_bits) | right


def _mix(x: UInt64Array) -> UInt64Array:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood 2014), uint64 wrapping around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def chunk_ids(
    seed: int, n_sequences: int, chunk: int, chunk_sequences: int, purpose: str = "router"
) -> Int64Array:
    """Return the sequence ids of one chunk, int64[chunk_sequences].

    The passes over the corpus, each a new permutation of range(n_sequences), stand one after
    the other; chunk c (from 0) is places c*N to (c+1)*N of that. A chunk may span passes.
    Raises ValueError for an empty corpus, a negative chunk or a chunk of no sequences.
    """
    if n_sequences < 1:
        raise ValueError("the corpus has no sequences to take a chunk from")
    if chunk < 0 or chunk_sequences < 1:
        raise ValueError(f"no such chunk: number {chunk} of {chunk_sequences} sequences")
    start, stop = chunk * chunk_sequences, (chunk + 1) * chunk_sequences
    parts = []
    while start < stop:
        number, place = divmod(start, n_sequences)
        take = min(n_sequences - place, stop - start)
        key = derive_key(seed, purpose, "pass", number)
        parts.append(Permutation(n_sequences, key).range(place, place + take))
        start += take
    return np.concatenate(parts)


def shard_ids(seed: int, n_sequences: int, start: int, stop: int) -> Int64Array:
    """Return the ids of one slice of the corpus, int64[stop - start].

    A slice is a range of one permutation of the corpus, never of the corpus itself: text lies
    there in the order of its sources, and a slice of one kind of text, divided evenly, would
    give every expert its share of each kind.
    """
    return Permutation(n_sequences, derive_key(seed, "shard")).range(start, stop)


def training_order(seed: int, ids: ArrayLike, count: int, *purpose: str | int) -> Int64Array:
    """Return the order in which a segment or share is trained on, int64[count].

    Pass after pass over `ids`, each a new keyed permutation of it, until `count` entries; a
    count below len(ids) is the beginning of the first pass. It depends on the order of `ids`,
    which is ascending for segments.
    Raises ValueError when entries are asked of an empty list, or count is negative.
    """
    ids_n = np.asarray(ids, dtype=np.int64)
    if count < 0 or (count > 0 and ids_n.size == 0):
        raise ValueError(f"can't take {count} training sequences out of a list of {ids_n.size}")
    out = np.empty(count, dtype=np.int64)
    done = number = 0
    while done < count:
        take = min(ids_n.size, count - done)
        key = derive_key(seed, *purpose, "pass", number)
        out[done : done + take] = ids_n[Permutation(ids_n.size, key).range(0, take)]
        done, number = done + take, number + 1
    return out
