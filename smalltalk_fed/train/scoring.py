"""Log-likelihoods of sequences: what routers are asked for, and what evaluation sums up.

`score_e(x) = sum_{s=1}^{M-1} log p(x_{s+1} | x_{1:s}; router_e)` (arXiv 2410.03529, equation
4). One function for everybody: nodes, the oracle, mixtures that answer prompts. On a CPU the
routers are gone through one by one, in micro-batches, so that a router's scores don't depend
on who else is asked and nodes that score alone agree with a process that scores for all; on
a GPU the routers' weights are stacked. Sums are fp32, logits stand a block at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from smalltalk_fed.data.loader import BatchLoader, RowSource
from smalltalk_fed.model.forward import LeanLlama, has_llama_shape, make_forward
from smalltalk_fed.model.loss import token_losses
from smalltalk_fed.model.stacked import StackedLlama
from smalltalk_fed.train.device import Dtype, autocast
from smalltalk_fed.train.plan import REPORT_S, Stopped

CACHED_TOKENS = 4096  # that a small model on a CPU works on at once

Losses = Callable[[Tensor], Tensor]  # int64[B, S] to the losses of tokens 2..S, fp32[B, S-1]


def score(
    models: Sequence[nn.Module],
    split: RowSource,
    ids: np.ndarray,
    prefix_tokens: int,
    *,
    batch_sequences: int,
    dtype: Dtype = "float32",
    device: torch.device | str = "cpu",
    on_progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Return the log-likelihood in nats of each prefix under each model, fp32[N, E].

    `ids` are N sequences of `split`; `batch_sequences` of them are worked on at once. The
    models are moved to `device`. `on_progress` is told the fraction that is done, about once a
    second. Raises Stopped when `should_stop` says so.
    """
    device = torch.device(device)
    scores_NxE = np.empty((len(ids), len(models)), dtype=np.float32)
    ask = (_stacked if _can_stack(models, device) else _one_by_one)(models, dtype, device)
    start = 0
    with BatchLoader(split, ids, batch_sequences, prefix_tokens, device) as batches:
        for tokens_BxM in _watched(batches, on_progress, should_stop):
            scores_BxE = ask(tokens_BxM)
            scores_NxE[start : start + len(scores_BxE)] = scores_BxE.cpu().numpy()
            start += len(scores_BxE)
    return scores_NxE


def score_one(
    model: nn.Module,
    split: RowSource,
    ids: np.ndarray,
    prefix_tokens: int,
    *,
    batch_sequences: int,
    dtype: Dtype = "float32",
    device: torch.device | str = "cpu",
    on_progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Return one model's column of `score`, fp32[N]; on a CPU the same bits."""
    column_Nx1 = score(
        [model],
        split,
        ids,
        prefix_tokens,
        batch_sequences=batch_sequences,
        dtype=dtype,
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    return column_Nx1[:, 0]


def sequence_losses(
    model: nn.Module,
    split: RowSource,
    ids: np.ndarray,
    prefix_tokens: int,
    *,
    batch_sequences: int,
    dtype: Dtype = "float32",
    device: torch.device | str = "cpu",
    on_progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each sequence's negative log-likelihood of tokens 2..M and of tokens M+1..S.

    Both float64[N], in nats, summed in float64. `on_progress` and `should_stop` as in `score`.
    """
    device = torch.device(device)
    losses = _losses_of(model, dtype, device)
    sums_2xN = np.empty((2, len(ids)))
    start = 0
    with torch.inference_mode(), BatchLoader(split, ids, batch_sequences, None, device) as batches:
        for tokens_BxS in _watched(batches, on_progress, should_stop):
            losses_BxS = losses(tokens_BxS).cpu().double()
            stop = start + len(losses_BxS)
            sums_2xN[0, start:stop] = losses_BxS[:, : prefix_tokens - 1].sum(dim=1).numpy()
            sums_2xN[1, start:stop] = losses_BxS[:, prefix_tokens - 1 :].sum(dim=1).numpy()
            start = stop
    return sums_2xN[0], sums_2xN[1]


def _watched(
    batches: BatchLoader,
    on_progress: Callable[[float], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Iterator[Tensor]:
    reported_at = time.monotonic()
    for index, batch in enumerate(batches):
        if should_stop is not None and should_stop():
            raise Stopped
        yield batch
        now = time.monotonic()
        if on_progress is not None and now - reported_at >= REPORT_S:
            reported_at = now
            on_progress((index + 1) / len(batches))


def _one_by_one(
    models: Sequence[nn.Module], dtype: Dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    losses = [_losses_of(model, dtype, device) for model in models]

    @torch.inference_mode()
    def ask(tokens_BxM: Tensor) -> Tensor:
        return torch.stack([-losses_of(tokens_BxM).sum(dim=1) for losses_of in losses], dim=1)

    return ask


def _can_stack(models: Sequence[nn.Module], device: torch.device) -> bool:
    if device.type == "cpu" or len(models) < 2 or not all(map(has_llama_shape, models)):
        return False
    shapes = [{name: w.shape for name, w in model.named_parameters()} for model in models]
    return all(shape == shapes[0] for shape in shapes)


def _stacked(
    models: Sequence[nn.Module], dtype: Dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    return StackedLlama(models, device, getattr(torch, dtype)).scores


def _losses_of(model: nn.Module, dtype: Dtype, device: torch.device) -> Losses:
    """Return how to compute the losses of `model`, which is put in order for it."""
    model.to(device).eval()
    forward = make_forward(model, lean=dtype == "float32")
    if isinstance(forward, LeanLlama):
        forward.freeze()

    def losses(tokens_BxS: Tensor) -> Tensor:
        targets = tokens_BxS[:, 1:].reshape(-1)
        with autocast(dtype, device):
            if forward is None:
                logits = model(input_ids=tokens_BxS, use_cache=False).logits[:, :-1]
                flat = nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), targets, reduction="none"
                )
            else:
                hidden = forward(tokens_BxS)[:, :-1].flatten(0, 1)
                if dtype == "bfloat16":
                    hidden = hidden.to(torch.bfloat16)
                flat = token_losses(hidden, forward.head, targets)
        return flat.view(len(tokens_BxS), -1)

    if not isinstance(forward, LeanLlama):
        return losses

    def in_parts(tokens_BxS: Tensor) -> Tensor:
        rows = max(1, CACHED_TOKENS // tokens_BxS.shape[1])
        return torch.cat([losses(part) for part in tokens_BxS.split(rows)])

    return in_parts
