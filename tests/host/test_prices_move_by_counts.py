"""The job that moves a private run's prices: rows of counts in, prices out, a bad row named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.silo_world import private_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.privacy import PrivacySection
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.core.job_messages import JobFailed, JobFinished, PricesJob
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
    experts = ((0,), (1,), (2, 3))
    return PricesJob("prices/1/0", 1, 0, (0, 1, 2), experts, refs, TRAIN, HELDOUT, PRICES)


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


def test_under_noise_a_row_may_count_more_than_is_held_out(
    manifest: RunManifest, tmp_path: Path
) -> None:
    """A silo gives each answer once: what is refused would come again for ever."""
    privacy = PrivacySection(router_noise=1.0, count_noise=5.0)
    noised = manifest.model_copy(
        update={"config": manifest.config.model_copy(update={"privacy": privacy})}
    )
    good, blobs = [encode_counts(row) for row in rows()], BlobStore(tmp_path)
    most = 40 + 4 * 46  # each of four counts by nine deviations, rounded
    for counted, ends in ((most, JobFinished), (most + 10, JobFailed)):
        row = encode_counts(np.array([counted // 10 * 10, WITHHELD, WITHHELD, WITHHELD], np.uint32))
        done = run_job(noised, job_over(blobs, [row, *good[1:]]), tmp_path)
        assert isinstance(done, ends)


def test_of_who_has_left_nothing_is_counted_and_the_price_stays(
    manifest: RunManifest, tmp_path: Path
) -> None:
    """Seat 0, and expert 3 of seat 2; the rows were counted while both were there."""
    left = (20, 10, 30, 20), (0, 40, 0, 0)
    blobs = BlobStore(tmp_path)
    data = [encode_counts(row) for row in rows((left[1], left[0]))]
    refs = tuple(blobs.put("counts", each) for each in data)
    sizes = ((200, 300), (40, 80))
    job = PricesJob("prices/2/0/2", 2, 0, (1, 2), ((1,), (2,)), refs, *sizes, PRICES)
    done = run_job(manifest, job, tmp_path)
    assert isinstance(done, JobFinished)
    prices = [done.figures[f"price_{e}"] for e in range(4)]
    assert (prices[0], prices[3]) == (PRICES[0], PRICES[3])
    # Of seat 2's row 10 and 30 count: a quarter goes to expert 1, whose own part is 2/5.
    step = manifest.config.private.price_step
    assert prices[1] == pytest.approx(PRICES[1] + step * (2 / 5 + 3 / 5 / 4 - 2 / 5))
    assert prices[2] == pytest.approx(PRICES[2] + step * (3 / 5 * 3 / 4 - 3 / 5))
    assert (done.figures["counted_2"], done.figures["away_2"]) == (40, 10)
    assert "counted_0" not in done.figures


def test_a_bad_row_of_who_is_left_is_named_by_its_seat(
    manifest: RunManifest, tmp_path: Path
) -> None:
    blobs = BlobStore(tmp_path)
    refs = tuple(blobs.put("counts", each) for each in (encode_counts(rows()[1]), b"no row"))
    sizes = ((200, 300), (40, 40))
    job = PricesJob("prices/2/0/1", 2, 0, (1, 2), ((1,), (2, 3)), refs, *sizes, PRICES)
    failed = run_job(manifest, job, tmp_path)
    assert isinstance(failed, JobFailed)
    assert failed.culprit == "count/2/2/0"


def test_a_row_that_is_gone_is_our_own_matter(manifest: RunManifest, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    job = job_over(blobs, [encode_counts(row) for row in rows()])
    blobs.drop(job.counts[0].digest)
    with pytest.raises(DamagedBlob):
        run_job(manifest, job, tmp_path)
