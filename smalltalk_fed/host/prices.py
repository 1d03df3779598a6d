"""The move of a private run's prices: the rows that its silos counted in, new prices out.

Rules: a row that can't be used names its unit as the culprit, so that its silo counts again;
what may stand in a row, and how the prices follow, is `mixture.silo_prices`' part.
"""

from __future__ import annotations

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.job_messages import JobFailed, JobFinished, PricesJob
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import BadBlob
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.mixture.silo_prices import WITHHELD, decode_counts, move_prices


def move(manifest: RunManifest, job: PricesJob, blobs: BlobStore) -> JobFinished | JobFailed:
    """Do `job`: the figures are `price_E`, and what `move_prices` says of the rows.

    For each seat K that is left also `counted_K`, the held-out sequences that its row shows, and
    `away_K`, those of them that experts of other seats would win. Prices of experts that have
    left stay as they are, and what rows count for them is passed over.
    """
    private, there = manifest.config.private, sum(job.experts, ())
    noise = manifest.config.privacy.counts_beyond(manifest.experts)
    rows = []
    for seat, ref, heldout in zip(job.seats, job.counts, job.heldout, strict=True):
        try:
            row = decode_counts(blobs.need(ref), manifest.experts, private.count_floor)
            if (counted := int(_shown(row).sum())) > heldout + noise:
                raise BadBlob(f"it counts {counted} of {heldout} held-out sequences")
        except BadBlob as error:
            key = UnitKey(UnitKind.COUNT, index=job.block, seat=seat, turn=job.turn)
            return JobFailed(job.job_id, f"counts refused: {error}", key.unit_id)
        rows.append(np.where(np.isin(np.arange(manifest.experts), there), row, WITHHELD))
    counts_KxE = np.stack(rows).astype(np.uint32)
    moved = move_prices(job.prices, counts_KxE, job.experts, job.train, private.price_step)
    prices_E, figures = moved
    figures |= {f"price_{expert}": float(price) for expert, price in enumerate(prices_E)}
    for seat, experts, row_E in zip(job.seats, job.experts, counts_KxE, strict=True):
        shown_E = _shown(row_E)
        figures[f"counted_{seat}"] = float(shown_E.sum())
        figures[f"away_{seat}"] = float(shown_E.sum() - shown_E[list(experts)].sum())
    return JobFinished(job.job_id, (), figures)


def _shown(row_E: np.ndarray) -> np.ndarray:
    return np.where(row_E == WITHHELD, 0, row_E).astype(np.int64)
