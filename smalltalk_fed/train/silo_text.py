"""A silo's text and its routers: what all that is computed in a silo has in common.

Rules: rows are gathered by id and never leave the functions that are given them. Routers are
`routers`' part.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from transformers import LlamaForCausalLM

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.mixture.assignment import Assignment, assign, equal_capacity
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.units import OnProgress


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
    return build_router(manifest, "common", parameters)


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
