"""What an auditor computes: an opinion on somebody else's result, for a judge to hold against it.

A few log-likelihoods of a small sample of sequences, drawn and laid out by `mixture.audit`.
Nothing is trained for it, but for a router's round where the unit asks for that (`redo`): from
the state before, on the accepted share, as the worker was to. The rules of `units` hold here
too: the same inputs give the same opinion on the same machine, and another machine's differs by
rounding, which a training makes larger (`mixture.verdict` says by how much). Scores are computed
as scoring computes them. An auditor never sees the score block or list that it is about, so
that it can't repeat it, and doesn't judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import HELDOUT, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus, TokenSplit
from smalltalk_fed.mixture.audit import (
    encode_opinion,
    expert_sample,
    parts_of,
    router_sample,
    slice_places,
)
from smalltalk_fed.mixture.permutation import shard_ids
from smalltalk_fed.model.state import state_from
from smalltalk_fed.train.device import use_threads
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score, sequence_losses
from smalltalk_fed.train.units import ShouldStop, train_router


@dataclass(frozen=True)
class Auditor:
    """Forms an opinion on the result of `target`, on the sequences that `sample` stands for.

    `redo`: it trains a router's round again. Each method returns the opinion for its kind of
    unit. They raise Malformed when parameters are not this run's, and Stopped when
    `should_stop` says so.
    """

    manifest: RunManifest
    corpus: TokenCorpus
    target: UnitKey
    sample: int
    device: torch.device | str = "cpu"
    should_stop: ShouldStop | None = None
    redo: bool = False

    def router_round(self, before: bytes | None, parameters: bytes, share_ids: np.ndarray) -> bytes:
        """Ask a router as it was before its round (None: before the first) and after it."""
        use_threads(self.manifest.config.compute)
        manifest, target = self.manifest, self.target
        drawn = router_sample(manifest, target, self.sample, share_ids)
        old = build_router(manifest, target.expert, before)
        new = build_router(manifest, target.expert, parameters)
        models = {"before": old, "after": new}
        if self.redo:
            models["redo"] = self._again(before, share_ids)
        parts: dict[str, np.ndarray] = {}
        if "next" in self._parts:
            parts["next"] = self._scores([new], self.corpus.train, drawn.next_ids)[:, 0]
        for name, split, ids in (
            ("public", self.corpus.heldout, drawn.public_ids),
            ("own", self.corpus.train, drawn.own_ids),
            ("rest", self.corpus.train, drawn.rest_ids),
        ):
            asked = [which for which in models if f"{name}_{which}" in self._parts]
            if asked:
                scores_KxA = self._scores([models[which] for which in asked], split, ids)
                found = zip(asked, scores_KxA.T, strict=True)
                parts |= {f"{name}_{which}": scores_K for which, scores_K in found}
        return encode_opinion(manifest, target, parts, self.redo)

    def shard(self, routers: Sequence[bytes]) -> bytes:
        """Ask all routers about sequences of a slice, or of the held-out text."""
        use_threads(self.manifest.config.compute)
        manifest, target = self.manifest, self.target
        split, ids = self.corpus.heldout, slice_places(manifest, target, self.sample)
        if target.index != HELDOUT:
            bounds = manifest.shard_range(target.index)
            slice_ids = shard_ids(manifest.config.run.seed, manifest.train_sequences, *bounds)
            split, ids = self.corpus.train, slice_ids[ids]
        models = [build_router(manifest, e, parameters) for e, parameters in enumerate(routers)]
        scores_KxE = self._scores(models, split, ids)
        parts = dict(zip(self._parts, scores_KxE.T, strict=True))
        return encode_opinion(manifest, target, parts)

    def expert(
        self,
        weights: Path,
        routers: Sequence[bytes],
        segment_ids: np.ndarray,
        routed_N: np.ndarray,
    ) -> bytes:
        """Ask a finished expert, whose weights are a file, beside all routers.

        `routed_N`: the expert of each held-out sequence; empty if there are none.
        """
        use_threads(self.manifest.config.compute)
        manifest, target = self.manifest, self.target
        drawn = expert_sample(manifest, target, self.sample, segment_ids, routed_N)
        models = [build_router(manifest, e, parameters) for e, parameters in enumerate(routers)]
        expert = build_expert(manifest, "expert")
        state_from(expert, weights)
        parts: dict[str, np.ndarray] = {}
        split = self.corpus.heldout if drawn.heldout else self.corpus.train
        for name, ids in (("own", drawn.own_ids), ("other", drawn.other_ids)):
            if f"{name}_expert" in self._parts:
                scores_KxE = self._scores(models, split, ids).astype(np.float64)
                parts[f"{name}_expert"] = -self._losses(expert, split, ids)[0]
                parts[f"{name}_router"] = scores_KxE[:, target.expert]
                others = np.arange(manifest.experts) != target.expert
                if others.any():
                    parts[f"{name}_others"] = scores_KxE[:, others].mean(axis=1)
        prefix_K, suffix_K = self._losses(expert, self.corpus.train, drawn.whole_ids)
        length, prefix = manifest.config.sequence.length, manifest.config.sequence.prefix
        parts["whole"] = -(prefix_K + suffix_K) * ((prefix - 1) / (length - 1))
        return encode_opinion(manifest, target, parts)

    # -------------------------------------------------------------------------------- small

    def _again(self, before: bytes | None, share_ids: np.ndarray) -> nn.Module:
        """The router as its round should have left it."""
        target = self.target
        return train_router(
            self.manifest,
            self.corpus,
            target.expert,
            target.index,
            before,
            share_ids,
            device=self.device,
            should_stop=self.should_stop,
        )[0]

    @property
    def _parts(self) -> tuple[str, ...]:
        return parts_of(self.manifest, self.target, self.redo)

    @property
    def _how(self) -> dict[str, Any]:
        """As scoring asks: what the manifest fixes."""
        config = self.manifest.config
        return {
            "prefix_tokens": config.sequence.prefix,
            "batch_sequences": config.compute.score_batch,
            "dtype": config.compute.score_dtype,
            "device": self.device,
            "should_stop": self.should_stop,
        }

    def _scores(
        self, models: Sequence[nn.Module], split: TokenSplit, ids: np.ndarray
    ) -> np.ndarray:
        """Return the log-likelihoods of prefixes under each model, fp32[K, models]."""
        return score(models, split, ids, **self._how)

    def _losses(
        self, model: nn.Module, split: TokenSplit, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses of prefixes and of suffixes, both float64[K]."""
        return sequence_losses(model, split, ids, **self._how)
