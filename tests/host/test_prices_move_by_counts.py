"""The job that moves a private run's prices: rows of counts in, prices out, a bad row named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.silo_world import private_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.core.messages import JobFailed, JobFinished, PricesJob
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import DamagedBlob
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.jobs import run_job
from smalltalk_fed.mixture.silo_prices import WITHHELD, encode_counts, move_prices

ROWS = ((30, 10, 0, 0), (0, 40, 0, 0), (20, 0, 10, 10))
TRAIN, HELDOUT, PRICES = (100, 200, 300), (40, 40, 40), (0.5, 0.0, -0.25, 0.0)


def rows(counts: tuple[tuple[int, ...], ...] = ROWS) -> list[np.ndarray]:
    return [np.array([count if count else WITHHELD for count in row], np.uint32) for row in counts]


def job_over(blobs: BlobStore, data: list[bytes]) -> PricesJob:
    refs: tuple[BlobRef, ...] = tuple(blobs.put("counts", each) for each in data)
    return PricesJob("prices/1/0", 1, 0, refs, TRAIN, HELDOUT, PRICES)


@pytest.fixture
def manifest() -> RunManifest:
    return private_manifest()


def test_the_prices_are_those_of_the_method(manifest: RunManifest, tmp_path: Path) -> None:
    job = job_over(BlobStore(tmp_path), [encode_counts(row) for row in rows()])
    done = run_job(manifest, job, tmp_path)
    assert isinstance(done, JobFinished)
    seats, step = seat_experts(manifest.config), manifest.config.private.price_step
    wanted, figures = move_prices(PRICES, np.stack(rows()), seats, TRAIN, step)
    assert [done.figures[f"price_{e}"] for e in range(4)] == wanted.tolist()
    assert done.figures["off_diagonal"] == figures["off_diagonal"]
    # What each seat shows, and how much of it others would win.
    assert [done.figures[f"counted_{k}"] for k in range(3)] == [40, 40, 40]
    assert [done.figures[f"away_{k}"] for k in range(3)] == [10, 0, 20]


@pytest.mark.parametrize(
    "bad",
    [
        b"no row",
        encode_counts(rows()[0])[:-4],
        encode_counts(rows(((50, 10, 0, 0),))[0]),  # more than it holds out
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    manifest: RunManifest, tmp_path: Path, bad: bytes
) -> None:
    good = [encode_counts(row) for row in rows()]
    job = job_over(BlobStore(tmp_path), [good[0], bad, good[2]])
    failed = run_job(manifest, job, tmp_path)
    assert isinstance(failed, JobFailed)
    assert failed.culprit == "count/1/1/0"


def test_a_row_that_is_gone_is_our_own_matter(manifest: RunManifest, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    job = job_over(blobs, [encode_counts(row) for row in rows()])
    blobs.drop(job.counts[0].digest)
    with pytest.raises(DamagedBlob):
        run_job(manifest, job, tmp_path)
