"""Batches come in order, from any start, and no thread outlives its iteration."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from smalltalk_fed.data.corpus import TokenCorpus, TokenSplit
from smalltalk_fed.data.loader import BATCHES_AHEAD, BatchLoader
from smalltalk_fed.errors import DataError

ORDER = np.asarray([5, 0, 19, 7, 7, 3, 11, 12, 2, 1, 18], dtype=np.int64)


@pytest.fixture
def split(tmp_path: Path, make_corpus: Callable[..., Path]) -> TokenSplit:
    rows = np.random.default_rng(3).integers(0, 300, (20, 8))
    return TokenCorpus.open(make_corpus(tmp_path / "c", [rows[:13], rows[13:]], [])).train


class Recorder:
    """A split that counts how often it was asked, and fails where told."""

    def __init__(self, split: TokenSplit, fails_at: int = -1) -> None:
        self.split, self.fails_at, self.asked = split, fails_at, 0
        self.progress = threading.Condition()

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        with self.progress:
            self.asked += 1
            self.progress.notify_all()
        if self.asked - 1 == self.fails_at:
            raise DataError("the disk is gone")
        return self.split.rows(ids, tokens)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-loader"]


def test_batches_are_the_rows_of_the_order(split: TokenSplit) -> None:
    batches = list(BatchLoader(split, ORDER, 4, 8, "cpu"))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert all(batch.dtype == torch.int64 for batch in batches)
    expected = split.rows(ORDER).astype(np.int64)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), expected)
    assert not loader_threads()


@pytest.mark.parametrize("start", range(5))
def test_a_later_start_gives_the_tail(split: TokenSplit, start: int) -> None:
    whole = list(BatchLoader(split, ORDER, 4, 5, "cpu"))
    loader = BatchLoader(split, ORDER, 4, 5, "cpu", start_batch=start)
    tail = list(loader)
    assert len(loader) == len(tail) == max(0, 3 - start)
    for got, expected in zip(tail, whole[start:], strict=True):
        assert torch.equal(got, expected)
        assert got.shape[1] == 5


def test_it_can_be_iterated_again(split: TokenSplit) -> None:
    loader = BatchLoader(split, ORDER, 3, None, "cpu")
    first, second = list(loader), list(loader)
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_abandoned_iterations_leave_no_thread(split: TokenSplit) -> None:
    order = np.tile(ORDER, 20)
    for batch in BatchLoader(split, order, 1, 8, "cpu"):
        assert len(batch) == 1
        break
    with BatchLoader(split, order, 1, 8, "cpu") as loader:
        first, second = iter(loader), iter(loader)
        next(first)
        next(second)
        assert len(loader_threads()) == 2
    assert not loader_threads()
    assert next(first, None) is None  # closed, not waiting for ever


def test_it_gathers_only_a_few_batches_ahead(split: TokenSplit) -> None:
    recorder = Recorder(split)
    with BatchLoader(recorder, np.tile(ORDER, 20), 1, 8, "cpu") as loader:
        batches = iter(loader)
        next(batches)
        with recorder.progress:
            limit = 1 + BATCHES_AHEAD
            assert recorder.progress.wait_for(lambda: recorder.asked == limit, timeout=30)
    assert recorder.asked == limit


def test_an_error_of_the_thread_is_raised_in_its_place(split: TokenSplit) -> None:
    batches = iter(BatchLoader(Recorder(split, fails_at=2), ORDER, 2, 8, "cpu"))
    assert len(next(batches)) == 2
    assert len(next(batches)) == 2
    with pytest.raises(DataError, match="the disk is gone"):
        next(batches)
    assert not loader_threads()


def test_an_id_outside_the_split_is_a_data_error(split: TokenSplit) -> None:
    with pytest.raises(DataError, match="sequence id 20 does not exist"):
        list(BatchLoader(split, np.asarray([0, 20]), 2, 8, "cpu"))


def test_nonsense_is_refused(split: TokenSplit) -> None:
    with pytest.raises(ValueError, match="batch_sequences"):
        BatchLoader(split, ORDER, 0, 8, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_rows_are_the_same(split: TokenSplit) -> None:
    batches = list(BatchLoader(split, np.tile(ORDER, 50), 4, 8, "cuda"))
    assert all(batch.is_cuda for batch in batches)
    expected = split.rows(np.tile(ORDER, 50)).astype(np.int64)
    np.testing.assert_array_equal(torch.cat(batches).cpu().numpy(), expected)
