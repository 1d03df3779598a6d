"""Pieces of text to token ids, on all cores, in order.

Batches go to worker processes and come back in the order in which they were read, so the
result does not depend on the number of workers; only a few batches a worker are in flight,
so memory does not depend on the amount of text. One worker means this process. Workers are
spawned, not forked: the tokenizer's threads don't survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from smalltalk_fed.data.corpus import TOKEN_DTYPES
from smalltalk_fed.data.pieces import Piece
from smalltalk_fed.data.tokenizer import load_tokenizer, token_ids
from smalltalk_fed.errors import WorldError

BATCH_CHARACTERS = 1 << 20
BATCH_PIECES = 1024

_BATCHES_AHEAD = 3  # a worker


class Encoder:
    """Encodes texts one after the other with the tokenizer of a folder."""

    def __init__(self, tokenizer_folder: Path, dtype: str) -> None:
        self._tokenizer = load_tokenizer(tokenizer_folder)
        self._dtype = TOKEN_DTYPES[dtype]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, without special tokens.

        Raises:
            DataError: the tokenizer fails over one of them.
        """
        return [np.asarray(token_ids(self._tokenizer, text), dtype=self._dtype) for text in texts]


@dataclass(frozen=True, slots=True)
class EncodedPiece:
    """A piece and its token ids."""

    piece: Piece
    tokens: np.ndarray


def encode_in_order(
    pieces: Iterable[Piece], tokenizer_folder: Path, dtype: str, workers: int
) -> Generator[EncodedPiece]:
    """Encode `pieces` with `workers` processes; yields them in their order.

    Raises:
        DataError: the tokenizer fails over a piece.
        WorldError: a worker process died.
    """
    batches = _batches(pieces)
    if workers == 1:
        encoder = Encoder(tokenizer_folder, dtype)
        for batch in batches:
            texts = [piece.text for piece in batch]
            yield from map(EncodedPiece, batch, encoder.encode(texts))
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer_folder, dtype),
    )
    try:
        in_flight: deque[tuple[list[Piece], Future[list[np.ndarray]]]] = deque()
        for batch in batches:
            texts = [piece.text for piece in batch]
            in_flight.append((batch, pool.submit(_encode, texts)))
            if len(in_flight) >= workers * _BATCHES_AHEAD:
                yield from _oldest(in_flight)
        while in_flight:
            yield from _oldest(in_flight)
    except BrokenProcessPool:
        raise WorldError(
            "a process that encodes text died, perhaps for want of memory; try fewer workers "
            "(one needs no process of its own, nor a script guarded by __name__ == '__main__')."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _oldest(
    in_flight: deque[tuple[list[Piece], Future[list[np.ndarray]]]],
) -> Iterator[EncodedPiece]:
    batch, future = in_flight.popleft()
    return map(EncodedPiece, batch, future.result())


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_encoder: Encoder | None = None


def _start_worker(tokenizer_folder: Path, dtype: str) -> None:
    global _encoder
    # Ctrl-C reaches the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(tokenizer_folder, dtype)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _encode(texts: list[str]) -> list[np.ndarray]:
    assert _encoder is not None
    return _encoder.encode(texts)
