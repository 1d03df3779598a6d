"""The regime `private` in one process, written plainly: the oracle of distributed private runs.

    repeat X times:
        every silo: a block of EM rounds of its own routers on its own text
        every silo: counts of held-out prefixes that each router wins; prices move
    every silo: its text divided among its own experts

(method.md, section 2, "Private data"). Counts go through the same rows as on the wire, so that a
distributed run on the same seed, text, machine and threads gives the same routers and prices;
under noise (`[privacy]`) no two runs are the same.
The last exchange is repeated `price_rounds` times, over the scores of the first. Public text is
not divided here, and experts are not trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.mixture.silo_prices import (
    decode_counts,
    encode_counts,
    expert_shares,
    move_prices,
)
from smalltalk_fed.train.silo import (
    SiloText,
    block_count,
    silo_block,
    silo_segments,
)
from smalltalk_fed.train.silo_counts import silo_counts


@dataclass(frozen=True)
class Exchange:
    """One exchange: what the silos showed, and the prices after it."""

    block: int  # 1..X
    index: int  # 0.. of the last block's; 0 of every other
    counts_KxE: np.ndarray  # uint32, withheld entries included
    prices_E: np.ndarray
    figures: dict[str, float]


@dataclass(frozen=True)
class PrivateOracle:
    """What the regime gives: E routers and prices, each expert's text and its share of all."""

    routers: list[bytes]
    prices_E: np.ndarray
    exchanges: list[Exchange]
    segments: dict[int, np.ndarray]  # ids in the silo's own numbering; they never leave it
    share_E: np.ndarray


def run_private_em(
    manifest: RunManifest,
    silos: Sequence[SiloText],
    *,
    device: torch.device | str = "cpu",
    on_exchange: Callable[[Exchange], None] | None = None,
) -> PrivateOracle:
    """Train all routers where their text is, and settle prices; `silos[k]` sits in seat k."""
    private, seats = manifest.config.private, seat_experts(manifest.config)
    sequences_K = [len(silo.train) for silo in silos]
    routers: dict[int, bytes] = {}
    prices_E = np.zeros(manifest.experts)
    exchanges: list[Exchange] = []
    blocks = block_count(manifest)
    for block in range(1, blocks + 1):
        after: dict[int, bytes] = {}
        for seat, silo in enumerate(silos):
            own = {e: routers[e] for e in seats[seat] if e in routers}
            after |= silo_block(manifest, seat, silo, block, own, device=device).parameters
        routers = after
        every = [routers[e] for e in range(manifest.experts)]
        with tempfile.TemporaryDirectory() as scores:
            for index in range(private.price_rounds if block == blocks else 1):
                rows = [
                    _row(manifest, seat, silo, block, index, every, prices_E, device, Path(scores))
                    for seat, silo in enumerate(silos)
                ]
                counts_KxE = np.stack(rows)
                prices_E, figures = move_prices(
                    prices_E, counts_KxE, seats, sequences_K, private.price_step
                )
                exchanges.append(Exchange(block, index, counts_KxE, prices_E, figures))
                if on_exchange is not None:
                    on_exchange(exchanges[-1])
    segments: dict[int, np.ndarray] = {}
    for seat, silo in enumerate(silos):
        own = {e: routers[e] for e in seats[seat]}
        segments |= silo_segments(manifest, seat, silo, own, device=device)
    return PrivateOracle(
        routers=[routers[e] for e in range(manifest.experts)],
        prices_E=prices_E,
        exchanges=exchanges,
        segments=segments,
        share_E=expert_shares(seats, sequences_K),
    )


def _row(
    manifest: RunManifest,
    seat: int,
    silo: SiloText,
    block: int,
    index: int,
    routers: Sequence[bytes],
    prices_E: np.ndarray,
    device: torch.device | str,
    scores: Path,
) -> np.ndarray:
    """What one silo shows of its counts, as it comes over the wire, uint32[E]."""
    own = scores / str(seat)
    own.mkdir(exist_ok=True)
    row_E, _ = silo_counts(
        manifest, seat, silo, block, index, routers, prices_E, cache_folder=own, device=device
    )
    floor = manifest.config.private.count_floor
    return decode_counts(encode_counts(row_E), manifest.experts, floor)
