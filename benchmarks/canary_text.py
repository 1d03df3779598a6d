"""Silos with canaries in their text, and how much of them a model gives away.

A canary is a name and a secret, both of random tokens, at the beginning of some sequences of a
silo. Used by `canaries.py`; nothing is trained here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaForCausalLM

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.train.scoring import score

SILOS = 4
NAME, SECRET, CANDIDATES = 8, 8, 4096  # tokens, tokens, secrets of the same form
COPIES = (1, 4, 16)


@dataclass(frozen=True)
class Canary:
    """Tokens that were planted in `copies` sequences."""

    tokens: np.ndarray
    copies: int


@dataclass(frozen=True)
class Rows:
    """Sequences in memory."""

    tokens_NxS: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NxS)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.tokens_NxS[ids, :tokens]


@dataclass(frozen=True)
class Silo:
    """Text with canaries in it, and held-out text without."""

    train: Rows
    heldout: Rows
    canaries: list[Canary]


def deal(corpus: TokenCorpus, seed: int, each: int) -> list[Silo]:
    """Two domains a silo, and `each` canaries of every number of copies in it."""
    random = np.random.default_rng(seed)
    silos = []
    for seat in range(SILOS):
        texts = []
        for split in (corpus.train, corpus.heldout):
            labels_N = split.labels
            assert labels_N is not None
            ids = np.flatnonzero(labels_N // 2 == seat)
            texts.append(split.rows(ids).copy())
        canaries, free = [], random.permutation(len(texts[0]))
        for copies in COPIES * each:
            tokens = random.integers(1, corpus.manifest.vocabulary, NAME + SECRET)
            places, free = free[:copies], free[copies:]
            texts[0][places, : NAME + SECRET] = tokens
            canaries.append(Canary(tokens, copies))
        silos.append(Silo(Rows(texts[0]), Rows(texts[1]), canaries))
    return silos


def secret_scores(model: LlamaForCausalLM, tokens_NxL: np.ndarray) -> np.ndarray:
    """Log-likelihood of each row's secret after its name, float64[N]."""
    rows, ids = Rows(tokens_NxL), np.arange(len(tokens_NxL))
    whole = score([model], rows, ids, NAME + SECRET, batch_sequences=256)[:, 0]
    name = score([model], rows, ids[:1], NAME, batch_sequences=1)[0, 0]
    return whole.astype(np.float64) - float(name)


def exposure(model: LlamaForCausalLM, canary: Canary, seed: int, vocabulary: int) -> float:
    """Bits by which the secret stands out among candidates of the same form."""
    random = np.random.default_rng([seed, *canary.tokens[:NAME]])
    rows = np.tile(canary.tokens, (CANDIDATES, 1))
    rows[1:, NAME:] = random.integers(1, vocabulary, (CANDIDATES - 1, SECRET))
    scores_N = secret_scores(model, rows)
    return math.log2(CANDIDATES) - math.log2(1 + int((scores_N[1:] > scores_N[0]).sum()))


@torch.inference_mode()
def extracted(model: LlamaForCausalLM, canary: Canary) -> int:
    """How many of the secret's tokens greedy decoding gives before the first wrong one."""
    tokens = canary.tokens[:NAME].tolist()
    for right, token in enumerate(canary.tokens[NAME:].tolist()):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        if int(logits[0, -1].argmax()) != token:
            return right
        tokens.append(token)
    return SECRET
