"""Batches of sequences on a device, gathered ahead by a thread.

Rules: the batches are consecutive runs of `order`, and nothing else decides what they
hold, so a loader started at a later batch gives exactly what the first would have given
there. On CUDA the rows are gathered into pinned memory and copied without waiting. The
thread ends with the iteration, also when that is abandoned half-way, and its errors are
raised in the iteration. The only module of `data` that imports torch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch

BATCHES_AHEAD = 4


class RowSource(Protocol):
    """What a loader gathers from; a `TokenSplit` is one."""

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        ...


class BatchLoader:
    """Iterates over int64 tensors [B, tokens] of the sequences `order`, in its order.

    The last batch is smaller if the order's length asks for it. Every iteration starts at
    `start_batch` with a thread of its own; as a context manager it also ends threads of
    iterations that were left in the middle.
    """

    def __init__(
        self,
        split: RowSource,
        order: np.ndarray,
        batch_sequences: int,
        tokens: int | None,
        device: torch.device | str,
        start_batch: int = 0,
    ) -> None:
        """`tokens` of each sequence (None: all); `start_batch` batches are passed over."""
        if batch_sequences < 1 or start_batch < 0:
            raise ValueError("batch_sequences must be at least 1 and start_batch at least 0")
        self._split, self._order = split, np.asarray(order, dtype=np.int64)
        self._batch_sequences, self._tokens = batch_sequences, tokens
        self._device = torch.device(device)
        self._start_batch = start_batch
        self._running: list[_Gatherer] = []

    def __len__(self) -> int:
        """Batches that an iteration gives."""
        batches = -(-len(self._order) // self._batch_sequences)
        return max(0, batches - self._start_batch)

    def __iter__(self) -> Iterator[torch.Tensor]:
        gatherer = _Gatherer(
            self._split,
            [
                self._order[first : first + self._batch_sequences]
                for first in range(
                    self._start_batch * self._batch_sequences,
                    len(self._order),
                    self._batch_sequences,
                )
            ],
            self._tokens,
            self._device.type == "cuda",
        )
        self._running.append(gatherer)
        try:
            while (batch := gatherer.next()) is not None:
                # The allocator of pinned memory keeps `batch` until the copy is done.
                yield batch.to(self._device, non_blocking=True)
        finally:
            gatherer.close()
            if gatherer in self._running:
                self._running.remove(gatherer)

    def close(self) -> None:
        """End the threads of iterations that are still in the middle."""
        while self._running:
            self._running.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Gatherer:
    """A thread that gathers batches, at most BATCHES_AHEAD before they are asked for."""

    def __init__(
        self, split: RowSource, parts: list[np.ndarray], tokens: int | None, pin: bool
    ) -> None:
        self._split, self._parts, self._tokens, self._pin = split, parts, tokens, pin
        self._free = threading.Semaphore(BATCHES_AHEAD)
        self._ready: queue.SimpleQueue[torch.Tensor | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="batch-loader", daemon=True)
        self._thread.start()

    def next(self) -> torch.Tensor | None:
        """The next batch on the CPU; None after the last, or after `close`."""
        if self._stopped:
            return None
        item = self._ready.get()
        self._free.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop and join the thread; batches that are ready are let go."""
        self._stopped = True
        self._free.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            for part in self._parts:
                self._free.acquire()
                if self._stopped:
                    break
                self._ready.put(self._gather(part))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def _gather(self, ids: np.ndarray) -> torch.Tensor:
        rows_BxT = self._split.rows(ids, self._tokens)
        if not self._pin:
            return torch.from_numpy(rows_BxT.astype(np.int64))
        batch_BxT = torch.empty(rows_BxT.shape, dtype=torch.int64, pin_memory=True)
        batch_BxT.numpy()[...] = rows_BxT
        return batch_BxT
