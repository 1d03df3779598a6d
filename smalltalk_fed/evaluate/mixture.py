"""A mixture in memory: its routers, and experts that are loaded when they are needed.

Rules: routing is `argmax(score - price)` among the experts that are present, by at most the
first M tokens, with the same scoring as in training (arXiv 2410.03529, equation 5; the price
is the prior). Where experts elsewhere can be asked (`federated`), those that stayed with their
nodes count as present; a withdrawn one has no router, no score, and never does. Routers are
small and stand in memory; an expert is loaded from its folder, from this machine only,
safetensors only, and code that comes with a folder is never run. A mixture whose tokenizer or
routers are not those that mixture.json names is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.utils import logging

from smalltalk_fed.config.manifest import sha256
from smalltalk_fed.data.tokenizer import load_tokenizer
from smalltalk_fed.errors import DataError, PeerError
from smalltalk_fed.evaluate.heldout import Rows, heldout_of_tokens
from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.mixture.package import (
    MixtureError,
    MixtureManifest,
    known_experts,
    present_experts,
    read_mixture,
)
from smalltalk_fed.model.build import build_model, load_model
from smalltalk_fed.model.state import state_from_file
from smalltalk_fed.train.scoring import score
from smalltalk_fed.wire.tensors import check_weights, expected_llama_tensors

SCORE_BATCH = 64
FEWEST_TOKENS = 2  # one token has no likelihood of its own


@dataclass(frozen=True)
class Choice:
    """Why an expert was chosen for a prompt. `scores_E` is None where nothing was scored."""

    expert: int
    # Log-likelihood of the prefix under each router, nats; None for one that was withdrawn.
    scores_E: tuple[float | None, ...] | None
    prices_E: tuple[float, ...]
    present: tuple[int, ...]
    prefix_tokens: int  # how many were looked at
    margin: float | None  # nats ahead of the next best; None with one expert to choose from
    why: str

    def rows(self) -> list[dict[str, Any]]:
        """One row a router, as `--explain` shows them."""
        rows = []
        for expert, price in enumerate(self.prices_E):
            score_nats = None if self.scores_E is None else self.scores_E[expert]
            note = "" if expert in self.present else "not present"
            if self.scores_E is not None and score_nats is None:
                note = "withdrawn"
            rows.append(
                {
                    "expert": expert,
                    "score": score_nats,
                    "price": price,
                    "worth": None if score_nats is None else score_nats - price,
                    "note": "chosen" if expert == self.expert else note,
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "expert": self.expert,
            "scores": None if self.scores_E is None else list(self.scores_E),
            "prices": list(self.prices_E),
            "present": list(self.present),
            "prefix_tokens": self.prefix_tokens,
            "margin": self.margin,
            "why": self.why,
        }


class Mixture:
    """A loaded mixture. Make it with `load`."""

    def __init__(
        self,
        folder: Path,
        manifest: MixtureManifest,
        tokenizer: Tokenizer,
        routers: list[nn.Module | None],
        device: torch.device,
        federated: bool = False,
    ) -> None:
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer
        self.device = device
        self._routers = routers
        self._loaded: dict[int, nn.Module] = {}
        self.here = tuple(present_experts(folder, manifest))
        self.present = tuple(known_experts(manifest)) if federated else self.here
        self.prices_E = np.asarray(manifest.prices, dtype=np.float64)

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", *, federated: bool = False
    ) -> Mixture:
        """Load tokenizer and routers of a mixture folder.

        `federated`: experts that are not here may be chosen too; their nodes can be asked.

        Raises:
            MixtureError: not a mixture, a file that is missing or not the one that
                mixture.json names, or no expert is present.
        """
        manifest = read_mixture(folder, elsewhere=federated)
        tokenizer = load_tokenizer(folder / "tokenizer")
        routers = [
            _router(folder, manifest, entry.file) if entry.sha256 else None
            for entry in manifest.routers
        ]
        return cls(folder, manifest, tokenizer, routers, torch.device(device), federated)

    @property
    def experts(self) -> int:
        """E: experts, present or not."""
        return len(self._routers)

    @property
    def prefix_tokens(self) -> int:
        """M: tokens that routers look at, at most."""
        return self.manifest.prefix_tokens

    @property
    def sequence_tokens(self) -> int:
        """S: tokens in a sequence of training."""
        return self.manifest.sequence_tokens

    @property
    def tokenizer_sha256(self) -> str:
        """Identity of the tokenizer."""
        return self.manifest.tokenizer_sha256

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies."""
        return self.folder / "tokenizer"

    # --------------------------------------------------------------------------- routing

    def route(self, prefix_ids: list[int]) -> Choice:
        """Choose an expert for a text that begins with these tokens."""
        ids = prefix_ids[: self.prefix_tokens]
        if len(ids) < FEWEST_TOKENS:
            return self._unscored(len(ids))
        tokens_1xM = np.asarray([ids], dtype=np.int64)
        scores_E = self._scores(heldout_of_tokens(tokens_1xM).sequences, np.arange(1), len(ids))[0]
        worth_E = self._worth(scores_E[None])[0]
        expert = int(route(worth_E[None])[0])
        margin = self._margin(worth_E, expert)
        why = (
            f"expert {expert} has the largest score less price over the first {len(ids)} tokens"
            f"{'' if margin is None else f', {margin:.2f} nats ahead of the next'}"
        )
        if len(ids) < self.prefix_tokens:
            why += f" (the routers learned on {self.prefix_tokens})"
        scores = tuple(float(s) if np.isfinite(s) else None for s in scores_E)
        return self._choice(expert, scores, len(ids), margin, why + ".")

    def route_rows(self, rows: Rows, ids: np.ndarray) -> np.ndarray:
        """The expert of each sequence by its first M tokens, int32[N]."""
        scores_NxE = self._scores(rows, ids, self.prefix_tokens)
        return route(self._worth(scores_NxE))

    def _unscored(self, tokens: int) -> Choice:
        """The prior alone: the lowest price, and the lowest id among equals."""
        worth_E = self._worth(np.zeros((1, self.experts)))[0]
        expert = int(route(worth_E[None])[0])
        why = (
            f"a prompt of {tokens} {'token' if tokens == 1 else 'tokens'} tells routers nothing "
            f"(they need {FEWEST_TOKENS}); expert {expert} has the lowest price."
        )
        return self._choice(expert, None, tokens, self._margin(worth_E, expert), why)

    def _choice(
        self,
        expert: int,
        scores: tuple[float | None, ...] | None,
        tokens: int,
        margin: float | None,
        why: str,
    ) -> Choice:
        prices = tuple(float(price) for price in self.prices_E)
        return Choice(expert, scores, prices, self.present, tokens, margin, why)

    def _scores(self, rows: Rows, ids: np.ndarray, tokens: int) -> np.ndarray:
        """Log-likelihoods, fp32[N, E]; minus infinity where the router was withdrawn."""
        there = [e for e, router in enumerate(self._routers) if router is not None]
        routers = [router for router in self._routers if router is not None]
        scores_NxE = np.full((len(ids), self.experts), -np.inf, dtype=np.float32)
        scores_NxE[:, there] = score(
            routers, rows, ids, tokens, batch_sequences=SCORE_BATCH, device=self.device
        )
        return scores_NxE

    def _worth(self, scores_NxE: np.ndarray) -> np.ndarray:
        """Score less price; minus infinity for experts that are not here."""
        worth_NxE = scores_NxE.astype(np.float64) - self.prices_E
        absent = np.setdiff1d(np.arange(self.experts), self.present)
        worth_NxE[:, absent] = -np.inf
        return worth_NxE

    def _margin(self, worth_E: np.ndarray, expert: int) -> float | None:
        others = [worth_E[e] for e in self.present if e != expert]
        return float(worth_E[expert] - max(others)) if others else None

    # --------------------------------------------------------------------------- experts

    def expert(self, expert: int) -> nn.Module:
        """The model of one expert, on the device, ready to run.

        Raises:
            MixtureError: it is not present, or can't be loaded.
        """
        if expert not in self.here:
            raise MixtureError(f"{self.folder} has no expert {expert} that is present.")
        if expert not in self._loaded:
            folder = self.folder / self.manifest.experts[expert].folder
            try:
                model = _load_quietly(folder, self.manifest.vocabulary, 1)
            except DataError as error:
                raise MixtureError(str(error)) from None
            self._loaded[expert] = model.to(self.device).eval()
        return self._loaded[expert]

    def forget(self, expert: int) -> None:
        """Let go of an expert's memory."""
        self._loaded.pop(expert, None)

    def context_tokens(self, model: nn.Module) -> int:
        """The most tokens that an expert has learned to look back on."""
        return context_tokens(model, self.sequence_tokens)


def context_tokens(model: nn.Module, sequence_tokens: int) -> int:
    """The most tokens that a model has learned to look back on; `sequence_tokens` if it is mute."""
    known = getattr(model.config, "max_position_embeddings", None)
    return int(known or sequence_tokens)


def _router(folder: Path, manifest: MixtureManifest, file: str) -> nn.Module:
    shape, vocabulary = manifest.router_shape, manifest.vocabulary
    try:
        # Looked at first, so that no model is built of a size that somebody only claims.
        check_weights(folder / file, expected_llama_tensors(shape, vocabulary))
        model = build_model(shape, vocabulary, manifest.sequence_tokens, seed_key=b"")
        state_from_file(model, folder / file)
    except PeerError as error:
        raise MixtureError(f"{folder} can't be used: {error}.") from None
    return model.eval()


def load_dense(folder: Path, mixture: Mixture) -> nn.Module:
    """A dense model to compare with, on the mixture's device.

    Raises:
        DataError: no model, another tokenizer, or too small a context.
    """
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and sha256(tokenizer.read_bytes()) != mixture.tokenizer_sha256:
        raise DataError(
            f"{folder} has another tokenizer than the mixture, so their perplexities can't be "
            "compared; train one with `smalltalk baseline` on the mixture's corpus."
        )
    model = _load_quietly(folder, mixture.manifest.vocabulary, mixture.sequence_tokens)
    return model.to(mixture.device).eval()


def _load_quietly(folder: Path, vocabulary: int, max_tokens: int) -> nn.Module:
    """`load_model` without the library's own progress bars amid ours."""
    logging.disable_progress_bar()
    return load_model(folder, vocabulary, max_tokens)
