"""Looks for what must not leave a machine in bytes that did: text, tokens, scores.

A needle is cut into short pieces that overlap, each in every encoding that somebody could
have thought of, so that a part of it is found, too, wherever it begins. `Haystack` holds all
that left: each message as it was sent, and each upload put together again, since a piece may
lie across two parts.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from smalltalk_fed.wire.egress_record import Sent, uploads

TEXT_PIECE_BYTES = 16
TOKEN_PIECE = 6  # ids; five random ones of a vocabulary of 300 have 41 bits
SCORE_PIECE = 3
SCORE_RUN = 12  # numbers in a row that look like scores of prefixes
FLOATS = ("<f2", "<f4", ">f4", "<f8", ">f8")


@dataclass(frozen=True)
class Haystack:
    """All bytes that left, by where they were found."""

    places: dict[str, bytes]

    @classmethod
    def of(cls, messages: Sequence[Sent]) -> Haystack:
        """Messages, and the uploads among them."""
        places = {f"message {n} ({sent.call})": sent.data for n, sent in enumerate(messages)}
        for number, upload in enumerate(uploads(messages)):
            places[f"upload {number} ({upload.name} of {upload.unit_id})"] = bytes(upload.data)
        return cls(places)

    def find(self, pieces: Iterable[bytes]) -> list[str]:
        """Where any of the pieces are."""
        wanted = list(pieces)
        assert wanted
        assert all(len(piece) >= 5 for piece in wanted), "what is so short is found by chance"
        return [
            f"{place}: {piece!r}"
            for place, data in self.places.items()
            for piece in wanted
            if piece in data
        ]

    def score_like(self, low: float, high: float) -> list[str]:
        """Where `SCORE_RUN` floating-point numbers in a row are within low..high."""
        return [
            f"{place}: {kind}"
            for place, data in self.places.items()
            for kind in FLOATS
            if _has_run(data, np.dtype(kind), low, high)
        ]


def text_pieces(text: str) -> set[bytes]:
    """Pieces of a text: UTF-8, UTF-16, hexadecimal, base64 at each alignment; and it deflated."""
    data = text.encode()
    windows = {data[n : n + TEXT_PIECE_BYTES] for n in range(len(data) - TEXT_PIECE_BYTES + 1)}
    pieces = set(windows)
    for window in windows:
        pieces |= {window.hex().encode(), window.decode(errors="ignore").encode("utf-16-le")}
        # The middle of base64 is the same whatever stands before, at one of three alignments.
        pieces |= {base64.b64encode(window[skip : skip + 12]) for skip in range(3)}
    pieces.add(zlib.compress(data)[2:-4])
    return pieces


def token_pieces(tokens: Sequence[int]) -> set[bytes]:
    """Pieces of a run of token ids: integers of 2, 4 and 8 bytes, varints, decimal numbers."""
    pieces: set[bytes] = set()
    for start in range(len(tokens) - TOKEN_PIECE + 1):
        run = [int(token) for token in tokens[start : start + TOKEN_PIECE]]
        for kind in ("<u2", ">u2", "<u4", ">u4", "<i8", ">i8", "<f4"):
            pieces.add(np.array(run, dtype=kind).tobytes())
        pieces.add(b"".join(map(varint, run)))
        pieces |= {separator.join(map(str, run)).encode() for separator in (",", ", ", " ")}
    return pieces


def score_pieces(scores: Sequence[float]) -> set[bytes]:
    """Pieces of a vector of scores as floating-point numbers of every width, and in JSON.

    Numbers of 8 bytes also one by one, as protobuf's figures have them.
    """
    pieces = {struct.pack("<d", np.float32(score)) for score in scores}
    for start in range(len(scores) - SCORE_PIECE + 1):
        run = np.asarray(scores[start : start + SCORE_PIECE], dtype=np.float32)
        for kind in FLOATS:
            pieces.add(run.astype(kind).tobytes())
        pieces.add(b"".join(struct.pack("<f", score)[2:] for score in run))  # bfloat16
        pieces.add(", ".join(repr(float(score)) for score in run).encode())
    return {piece for piece in pieces if len(piece) >= 5}


def varint(value: int) -> bytes:
    """Protobuf's encoding of a small number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _has_run(data: bytes, kind: np.dtype[np.generic], low: float, high: float) -> bool:
    for skip in range(kind.itemsize):
        count = (len(data) - skip) // kind.itemsize
        if count < SCORE_RUN:
            return False
        values = np.frombuffer(data, kind, count, skip)
        with np.errstate(invalid="ignore"):
            inside = (values >= low) & (values <= high)
        # A run of n is where n steps of "and with the next" leave something.
        for shift in (1, 2, 4):
            inside = inside[:-shift] & inside[shift:]
        rest = SCORE_RUN - 8
        if (inside[:-rest] & inside[rest:]).any():
            return True
    return False
