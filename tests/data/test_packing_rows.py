"""Packing against naive twins: lists, one document after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.data.packing import Packer

END = 0
# Documents as lists of pieces, each a list of token ids.
documents = st.lists(st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=3))


def pack(
    docs: list[list[list[int]]], length: int, end: int | None
) -> tuple[list[list[int]], list[int], int]:
    packer = Packer(length, np.dtype("<u2"), end)
    rows, labels = [], []
    for label, pieces in enumerate(docs):
        for number, piece in enumerate(pieces):
            tokens = np.asarray(piece, dtype="<u2")
            new, their = packer.add(tokens, number == len(pieces) - 1, label)
            assert new.dtype == np.dtype("<u2")
            rows += new.tolist()
            labels += their.tolist()
    packer.finish()
    return rows, labels, packer.dropped_tokens


@given(docs=documents, length=st.integers(1, 7))
def test_cut_drops_the_remainder_of_every_document(
    docs: list[list[list[int]]], length: int
) -> None:
    expected, labels, dropped = [], [], 0
    for label, pieces in enumerate(docs):
        tokens = [token for piece in pieces for token in piece]
        while len(tokens) >= length:
            expected.append(tokens[:length])
            labels.append(label)
            tokens = tokens[length:]
        dropped += len(tokens)
    assert pack(docs, length, None) == (expected, labels, dropped)


@given(docs=documents, length=st.integers(1, 7))
def test_concat_joins_and_drops_only_the_end(docs: list[list[list[int]]], length: int) -> None:
    stream: list[tuple[int, int]] = []
    for label, pieces in enumerate(docs):
        stream += [(token, label) for piece in pieces for token in piece] + [(END, label)]
    whole = len(stream) // length * length
    starts = range(0, whole, length)
    expected = [[token for token, _ in stream[start : start + length]] for start in starts]
    labels = [stream[start][1] for start in starts]
    assert pack(docs, length, END) == (expected, labels, len(stream) - whole)
