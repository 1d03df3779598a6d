"""The row of counts that a silo sends, exact or under noise, and what a run's noise costs it.

What nodes and the oracle call between `silo.count_wins` and the wire. Rules: with `[privacy]`
on, no exact count goes past this module, and the silo's ledger says what was given; without it
the row is `withhold`'s of the exact counts, and nothing is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.mixture.silo_prices import withhold
from smalltalk_fed.train.privacy_cost import PrivacySpent, counts_spent, routers_spent
from smalltalk_fed.train.private_units import COUNTS, STEPS, private_counts, release_limits
from smalltalk_fed.train.releases import Releases
from smalltalk_fed.train.silo import count_wins
from smalltalk_fed.train.silo_rounds import block_sequences
from smalltalk_fed.train.silo_text import SiloText
from smalltalk_fed.train.units import OnProgress, ShouldStop


def silo_releases(manifest: RunManifest, seat: int, corpus: SiloText, folder: Path) -> Releases:
    """Open the ledger in `folder` of what the silo in `seat` gave under noise in this run.

    Raises WorldError when it is there and can't be read.
    """
    limits = release_limits(manifest, block_sequences(manifest, seat, len(corpus.train)))
    return Releases(folder, limits)


def silo_cost(
    manifest: RunManifest, train_sequences: int, heldout_sequences: int
) -> tuple[PrivacySpent, PrivacySpent]:
    """Return what the whole run costs a silo of so much text under noise: routers, counts.

    It is what its last units report, and the most that its ledger lets out. Under noise all
    seats have one expert, so that the seat does not matter.
    Raises UserError when opacus is not installed, DataError for a silo that is too small.
    """
    privacy, batch = manifest.config.privacy, manifest.config.router.batch_sequences
    limits = release_limits(manifest, block_sequences(manifest, 0, train_sequences))
    return (
        routers_spent(privacy, batch, train_sequences, limits[STEPS]),
        counts_spent(privacy, heldout_sequences, limits[COUNTS]),
    )


def silo_counts(
    manifest: RunManifest,
    seat: int,
    corpus: SiloText,
    block: int,
    index: int,
    routers: Sequence[bytes | None],
    prices_E: Sequence[float] | np.ndarray,
    *,
    releases: Releases | None = None,
    cache_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Return what may leave of the unit `count/seat/block/index`: uint32[E], and figures.

    Figures are what the silo's counts have cost so far, under noise, else none.
    Raises Refused when the silo has nothing left to give, Malformed for routers of another
    shape, and Stopped.
    """

    def count() -> np.ndarray:
        return count_wins(
            manifest,
            corpus,
            routers,
            prices_E,
            cache_folder=cache_folder,
            device=device,
            on_progress=on_progress,
            should_stop=should_stop,
        )

    floor = manifest.config.private.count_floor
    if not manifest.config.privacy.on:
        return withhold(count(), floor), {}
    inputs = {f"router-{expert}": data for expert, data in enumerate(routers) if data is not None}
    inputs["prices"] = np.asarray(prices_E, dtype="<f8").tobytes()
    row_E, figures = private_counts(
        manifest,
        f"count/{seat}/{block}/{index}",
        len(corpus.heldout),
        inputs,
        count,
        rows_before=block - 1 + index,
        releases=releases,
    )
    return withhold(row_E, floor), figures
