"""What a silo says of its own text: counts of held-out prefixes, segments, sums of losses.

Across silos routers compete by counts alone (method.md, section 2, "Private data"): every silo
counts how many of its held-out prefixes each router would win under the current prices. What
may leave of the counts is `mixture.silo_prices`' part, training an expert `silo_expert`'s.

Rules: those of `units` hold: what comes out is a function of manifest, text and inputs. Ids and
scores of single sequences go to the caller in the silo, and to no one else. A router that is
None is of an expert that has left the mixture: it wins nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.model.state import state_from, write_atomically
from smalltalk_fed.train.device import use_threads
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.routers import prefix_scores
from smalltalk_fed.train.scoring import sequence_losses
from smalltalk_fed.train.silo_rounds import (
    SiloBlockResult,
    block_count,
    block_rounds,
    silo_block,
    silo_chunk_sequences,
)
from smalltalk_fed.train.silo_text import SiloText, balance, build_silo_router
from smalltalk_fed.train.units import OnProgress, ShouldStop

__all__ = [
    "SiloBlockResult",
    "SiloEvaluation",
    "SiloText",
    "block_count",
    "block_rounds",
    "build_silo_router",
    "count_wins",
    "evaluate_silo",
    "heldout_scores",
    "silo_block",
    "silo_chunk_sequences",
    "silo_segments",
]


@dataclass(frozen=True)
class SiloEvaluation:
    """A silo's held-out text under the mixture; only `figures` may leave.

    `figures` has sums in nats and token counts over sequences whose winner's weights are here
    (`sequences`), as many of them as are a multiple of the floor, so that the total, which is
    known, does not tell what went elsewhere; nothing of them when they are fewer. And how many
    went `elsewhere`, rounded down to a multiple of the floor.
    """

    winner_N: np.ndarray
    figures: dict[str, float]


def heldout_scores(
    manifest: RunManifest,
    corpus: SiloText,
    routers: Sequence[bytes | None],
    *,
    cache_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> np.ndarray:
    """Return the score of each held-out prefix under each of the E routers, fp32[N, E].

    Under a router that is None it is minus infinity. They are kept in `cache_folder`, which must
    be the silo's own, since prices move several times over the same scores; the last ones are
    kept, under the digest of their routers.
    """
    use_threads(manifest.config.compute)
    file = None
    if cache_folder is not None:
        digest = hashlib.sha256()
        for parameters in routers:
            digest.update(hashlib.sha256(parameters or b"").digest())
        file = cache_folder / f"heldout-scores-{digest.hexdigest()[:32]}.f32"
        if (known := _read_scores(file, (len(corpus.heldout), len(routers)))) is not None:
            return known
    there = {e: data for e, data in enumerate(routers) if data is not None}
    scores_NxE = np.full((len(corpus.heldout), len(routers)), -np.inf, np.float32)
    scores_NxE[:, list(there)] = prefix_scores(
        manifest,
        [build_silo_router(manifest, e, data) for e, data in there.items()],
        corpus.heldout,
        np.arange(len(corpus.heldout)),
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    if file is not None:
        old = list(file.parent.glob("heldout-scores-*.f32"))
        write_atomically(file, scores_NxE.tofile)
        for path in old:
            path.unlink(missing_ok=True)
    return scores_NxE


def _read_scores(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if len(data) != 4 * shape[0] * shape[1]:
        return None
    return np.frombuffer(data, np.float32).reshape(shape)


def count_wins(
    manifest: RunManifest,
    corpus: SiloText,
    routers: Sequence[bytes | None],
    prices_E: Sequence[float] | np.ndarray,
    *,
    cache_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> np.ndarray:
    """Count the held-out prefixes that each router wins under score - price, int64[E].

    These are exact: `silo_prices.withhold` says what may leave of them.
    """
    scores_NxE = heldout_scores(
        manifest,
        corpus,
        routers,
        cache_folder=cache_folder,
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    return np.bincount(route(scores_NxE, prices_E), minlength=len(routers))


def silo_segments(
    manifest: RunManifest,
    seat: int,
    corpus: SiloText,
    routers: Mapping[int, bytes],
    *,
    without: Collection[int] = (),
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[int, np.ndarray]:
    """Divide the silo's training text evenly among its own experts, by the final routers.

    `without`: experts that had left before. Returns ascending int64 ids by expert; they never
    leave. With one expert it has all.
    """
    use_threads(manifest.config.compute)
    experts = [e for e in seat_experts(manifest.config)[seat] if e not in without]
    ids_N = np.arange(len(corpus.train))
    if len(experts) == 1:
        return {experts[0]: ids_N}
    scores_NxH = prefix_scores(
        manifest,
        [build_silo_router(manifest, e, routers[e]) for e in experts],
        corpus.train,
        ids_N,
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    place_N = balance(manifest, scores_NxH).expert_N
    return {expert: ids_N[place_N == place] for place, expert in enumerate(experts)}


def evaluate_silo(
    manifest: RunManifest,
    corpus: SiloText,
    routers: Sequence[bytes | None],
    prices_E: Sequence[float] | np.ndarray,
    experts: Mapping[int, bytes | Path],
    *,
    cache_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> SiloEvaluation:
    """Route the silo's held-out text, and sum the losses of what the experts here win.

    `experts` are weights that this silo has, its own and those that others share with it.
    `prefix_nll` is of tokens 2..M, `suffix_nll` of tokens M+1..S.
    """
    config = manifest.config
    winner_N = route(
        heldout_scores(
            manifest,
            corpus,
            routers,
            cache_folder=cache_folder,
            device=device,
            should_stop=should_stop,
        ),
        prices_E,
    )
    sums_2 = np.zeros(2)
    here = np.isin(winner_N, list(experts))
    floor = config.private.count_floor
    count, elsewhere = int(here.sum()) // floor * floor, int((~here).sum())
    summed_N = here & (np.cumsum(here) <= count)
    done = 0
    for expert, weights in sorted(experts.items()):
        ids = np.flatnonzero((winner_N == expert) & summed_N)
        if not len(ids):
            continue
        model = build_expert(manifest, "expert")
        state_from(model, weights)
        sums_2 += [
            column_N.sum()
            for column_N in sequence_losses(
                model,
                corpus.heldout,
                ids,
                config.sequence.prefix,
                batch_sequences=config.compute.score_batch,
                dtype=config.compute.score_dtype,
                device=device,
                should_stop=should_stop,
            )
        ]
        done += len(ids)
        if on_progress is not None:
            on_progress(done / max(1, count), {})
    figures = {"elsewhere": float(elsewhere // floor * floor)}
    if count:
        figures |= {
            "sequences": float(count),
            "prefix_nll": float(sums_2[0]),
            "suffix_nll": float(sums_2[1]),
            "prefix_tokens": float(count * (config.sequence.prefix - 1)),
            "suffix_tokens": float(count * (config.sequence.length - config.sequence.prefix)),
        }
    return SiloEvaluation(winner_N, figures)
