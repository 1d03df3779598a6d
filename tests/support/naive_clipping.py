"""Clipped sums of gradients the plain way: one backward pass a sequence, and our own forward."""

from __future__ import annotations

import numpy as np
import torch
from support.two_kinds import LENGTH, VOCABULARY
from transformers import LlamaForCausalLM

from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.loop import MeanLoss

CPU = torch.device("cpu")


def small_model(layers: int = 2) -> LlamaForCausalLM:
    """A model whose embedding is its head, the same each time."""
    shape = ModelShape(hidden=16, layers=layers, heads=2, feed_forward=32)
    return build_model(shape, VOCABULARY, LENGTH, b"key").train()


class Rows:
    """Random sequences in memory."""

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.tokens_NxS = random.integers(0, VOCABULARY, (count, LENGTH)).astype(np.uint16)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.tokens_NxS[ids, :tokens]


def naive_clipped_sums(
    model: LlamaForCausalLM, rows: Rows, ids: np.ndarray, tokens: int, clip: float
) -> list[torch.Tensor]:
    """The sum of each sequence's gradient, cut to the norm `clip`; one tensor a weight."""
    loss = MeanLoss(model)
    sums = [torch.zeros_like(weight) for weight in model.parameters()]
    for row in rows.rows(ids, tokens):
        model.zero_grad()
        loss(torch.from_numpy(row.astype(np.int64))[None]).backward()
        grads = [weight.grad.clone() for weight in model.parameters()]
        norm = torch.sqrt(sum((grad**2).sum() for grad in grads))
        for total, grad in zip(sums, grads, strict=True):
            total += grad * min(1.0, float(clip / norm))
    model.zero_grad()
    return sums
