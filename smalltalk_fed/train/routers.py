"""A run's routers: built from their parameters, and asked how likely prefixes are.

Rules: how a router begins is the run's seed's choice, for each expert its own weights; in a
private run all begin with the same, so that their scores differ by what they have read and by
nothing else. Batch and precision of scoring are the manifest's, the same in both regimes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.mixture.permutation import derive_key
from smalltalk_fed.model.build import build_model
from smalltalk_fed.model.state import state_from_bytes
from smalltalk_fed.train.scoring import score


def build_router(
    manifest: RunManifest, which: int | Literal["common"], parameters: bytes | None
) -> LlamaForCausalLM:
    """Build a router with these parameters; None: as it is before the first round.

    `which`: the expert that it is of, or "common" in a private run. Raises Malformed when the
    parameters are not this run's.
    """
    config = manifest.config
    key = derive_key(config.run.seed, "router", which)
    model = build_model(config.router.model, manifest.vocabulary, config.sequence.length, key)
    if parameters is not None:
        state_from_bytes(model, parameters)
    return model


def prefix_scores(
    manifest: RunManifest,
    models: Sequence[nn.Module],
    rows: RowSource,
    ids_N: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[float, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Return the log-likelihood in nats of each prefix under each model, fp32[N, E].

    `on_progress` is told the fraction that is done, and no figures. Raises Stopped when
    `should_stop` says so.
    """
    compute = manifest.config.compute
    return score(
        models,
        rows,
        ids_N,
        manifest.config.sequence.prefix,
        batch_sequences=compute.score_batch,
        dtype=compute.score_dtype,
        device=device,
        on_progress=None if on_progress is None else lambda part: on_progress(part, {}),
        should_stop=should_stop,
    )
