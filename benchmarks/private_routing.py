"""A private run's routers, prices and segments, made once and kept; what routers say of text."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from private_models import note
from private_silos import Picked, Silo

from smalltalk_fed.config.manifest import RunManifest, canonical_json
from smalltalk_fed.data.corpus import TokenSplit
from smalltalk_fed.mixture.assignment import assign, equal_capacity
from smalltalk_fed.train.private_em import Exchange, PrivateOracle, run_private_em
from smalltalk_fed.train.routers import prefix_scores
from smalltalk_fed.train.silo_text import build_silo_router


def routing(manifest: RunManifest, silos: Sequence[Silo], keep: Path) -> PrivateOracle:
    """The regime's routers, prices and segments."""
    config = manifest.config
    facts = [
        config.run.model_dump(mode="json"),
        config.sequence.model_dump(mode="json"),
        config.router.model_dump(mode="json"),
        config.private.model_dump(mode="json", exclude={"steps", "public_share", "lift"}),
    ]
    key = hashlib.sha256(canonical_json(facts))
    for silo in silos:
        key.update(silo.train.ids.tobytes() + silo.heldout.ids.tobytes())
    file = keep / f"routing-{key.hexdigest()[:24]}.npz"
    if not file.exists():
        began = time.process_time()

        def tell(exchange: Exchange) -> None:
            note(f"exchange {exchange.block}/{exchange.index}: {exchange.figures}")

        _save(run_private_em(manifest, silos, on_exchange=tell), file)
        note(f"routing: {time.process_time() - began:.0f} s of CPU")
    return _load(file, manifest.experts)


def router_scores(
    manifest: RunManifest, oracle: PrivateOracle, rows: TokenSplit | Picked
) -> np.ndarray:
    """Scores of all sequences of `rows` under the final routers, fp32[N, E]."""
    models = [build_silo_router(manifest, e, data) for e, data in enumerate(oracle.routers)]
    return prefix_scores(manifest, models, rows, np.arange(len(rows)))


def divide_public(
    manifest: RunManifest, oracle: PrivateOracle, public: Picked
) -> dict[int, np.ndarray]:
    """Each expert's part of public text, evenly, by the final routers: ids by expert."""
    scores_NxE = router_scores(manifest, oracle, public)
    capacity_E = equal_capacity(*scores_NxE.shape)
    expert_N = assign(scores_NxE, capacity_E, manifest.config.assignment.method).expert_N
    return {e: np.flatnonzero(expert_N == e) for e in range(manifest.experts)}


def _save(oracle: PrivateOracle, file: Path) -> None:
    exchanges = [[x.block, x.index, x.prices_E.tolist(), x.figures] for x in oracle.exchanges]
    part = file.with_suffix(".part.npz")
    np.savez(
        part,
        prices_E=oracle.prices_E,
        share_E=oracle.share_E,
        counts=np.stack([x.counts_KxE for x in oracle.exchanges]),
        exchanges=np.frombuffer(json.dumps(exchanges).encode(), np.uint8),
        **{f"segment_{e}": ids for e, ids in oracle.segments.items()},
        **{f"router_{e}": np.frombuffer(x, np.uint8) for e, x in enumerate(oracle.routers)},
    )
    part.replace(file)


def _load(file: Path, experts: int) -> PrivateOracle:
    with np.load(file) as kept:
        exchanges = json.loads(kept["exchanges"].tobytes())
        return PrivateOracle(
            routers=[kept[f"router_{e}"].tobytes() for e in range(experts)],
            prices_E=kept["prices_E"],
            exchanges=[
                Exchange(block, index, counts_KxE, np.asarray(prices), figures)
                for (block, index, prices, figures), counts_KxE in zip(
                    exchanges, kept["counts"], strict=True
                )
            ],
            segments={e: kept[f"segment_{e}"] for e in range(experts)},
            share_E=kept["share_E"],
        )
