"""A silo's text and its routers: what all that is computed in a silo has in common.

Rules: rows are gathered by id and never leave the functions that are given them; all routers of
a private run start from the same weights, which the run's seed gives, so that their scores
differ by what they have read and by nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.mixture.assignment import Assignment, assign, equal_capacity
from smalltalk_fed.mixture.permutation import derive_key
from smalltalk_fed.model.build import build_model
from smalltalk_fed.model.state import state_from_bytes
from smalltalk_fed.train.scoring import score
from smalltalk_fed.train.units import OnProgress, ShouldStop


class Rows(RowSource, Protocol):
    """N sequences, gathered by id; a `TokenSplit` is one."""

    def __len__(self) -> int: ...


class SiloText(Protocol):
    """A silo's own text; a `TokenCorpus` is one."""

    @property
    def train(self) -> Rows:
        """What is trained on."""
        ...

    @property
    def heldout(self) -> Rows:
        """What is only counted and summed over."""
        ...


def build_silo_router(
    manifest: RunManifest, expert: int, parameters: bytes | None
) -> LlamaForCausalLM:
    """Build router `expert` with these parameters; None: as all are before the first round.

    Raises Malformed when the parameters are not this run's.
    """
    config = manifest.config
    key = derive_key(config.run.seed, "router", "common")
    model = build_model(config.router.model, manifest.vocabulary, config.sequence.length, key)
    if parameters is not None:
        state_from_bytes(model, parameters)
    return model


def prefix_scores(
    manifest: RunManifest,
    models: Sequence[nn.Module],
    rows: Rows,
    ids_N: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> np.ndarray:
    """Return the log-likelihood in nats of each prefix under each model, fp32[N, E]."""
    config = manifest.config
    return score(
        models,
        rows,
        ids_N,
        config.sequence.prefix,
        batch_sequences=config.compute.score_batch,
        dtype=config.compute.score_dtype,
        device=device,
        on_progress=None if on_progress is None else lambda part: on_progress(part, {}),
        should_stop=should_stop,
    )


def balance(manifest: RunManifest, scores_NxH: np.ndarray) -> Assignment:
    """Divide a silo's sequences evenly among its own H experts, as the run's method says."""
    capacity_H = equal_capacity(*scores_NxH.shape)
    return assign(scores_NxH, capacity_H, manifest.config.assignment.method)


def without_losses(on_progress: OnProgress | None) -> OnProgress | None:
    """Report progress without the losses so far, which may be of a few sequences only."""
    if on_progress is None:
        return None

    def report(fraction: float, figures: dict[str, float]) -> None:
        on_progress(fraction, {name: x for name, x in figures.items() if name != "loss"})

    return report
