"""Cross-entropy of a large vocabulary without its logits standing in memory.

For N tokens of H numbers and a vocabulary of V, the logits are N x V; they are made a few
rows at a time, used, and thrown away. `mean_loss` (training) takes the gradients while a
block's logits are there, so that no logits are computed twice; `token_losses` (evaluation
and anything that needs each token) computes them again when it goes backward. Sums are
fp32 throughout. On a CPU the block is small enough to stay in the cache, which is worth
more than the memory; on a GPU it is as large as `GPU_BYTES` allows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
SlopeOf = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

CACHE_BYTES = 1 << 20  # logits of one block that stays in a CPU's cache, fp32
FEW_ROWS = 128  # fewer don't pay: reading the head costs more than multiplying by it
MANY_ROWS = 512  # then these, out of the cache
CPU_BYTES = 1 << 27  # within this
GPU_BYTES = 1 << 29
SMALL_HEAD = 1 << 20  # numbers


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Return how many tokens' logits are made at a time."""
    row_bytes = 4 * vocabulary
    if device.type != "cpu":
        return max(1, GPU_BYTES // row_bytes)
    cached = CACHE_BYTES // row_bytes
    if cached >= FEW_ROWS:
        return cached
    return max(1, min(MANY_ROWS, CPU_BYTES // row_bytes))


def token_losses(
    hidden_NxH: Tensor, head_VxH: Tensor, targets_N: Tensor, rows: int | None = None
) -> Tensor:
    """Return -log p(target) of every token, fp32[N], differentiable in both matrices.

    `targets_N` are int64 in 0..V-1; `rows` overrides how many tokens are worked on at once.
    """
    rows = rows or rows_at_once(len(head_VxH), hidden_NxH.device)
    head_VxH = head_VxH.to(hidden_NxH.dtype)  # bf16 under autocast on a GPU
    result: Tensor = _TokenLosses.apply(hidden_NxH, head_VxH, targets_N, rows)
    return result


def mean_loss(
    hidden_NxH: Tensor,
    head_VxH: Tensor,
    targets_N: Tensor,
    rows: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return the mean of `token_losses` as a scalar, its gradients taken on the way.

    Only one backward pass through it is possible, as for any loss that is trained on.
    `compiled` lets torch.compile join the passes over a block's logits (on a GPU).
    """
    rows = rows or rows_at_once(len(head_VxH), hidden_NxH.device)
    if compiled:  # blocks of one size, so that little is compiled
        rows = -(-len(hidden_NxH) // -(-len(hidden_NxH) // rows))
    head_VxH = head_VxH.to(hidden_NxH.dtype)
    slope_of = _compiled_slope() if compiled else _slope_in_place
    result: Tensor = _MeanLoss.apply(hidden_NxH, head_VxH, targets_N, rows, slope_of)
    return result


def _logits_in_bits(hidden: Tensor, head_t: Tensor) -> Tensor:
    """Return logits as powers of two, fp32: exp2 takes a third of the time of exp on a CPU."""
    if hidden.dtype == torch.float32:
        return torch.mm(hidden * LOG2_E, head_t)
    return torch.mm(hidden, head_t).float().mul_(LOG2_E)


def _losses_and_powers(bits: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses in bits [n, 1], and what turned `bits` into: powers, and their sums."""
    chosen = bits.gather(1, column)
    peak = bits.amax(dim=1, keepdim=True)
    powers = bits.sub_(peak).exp2_()
    sums = powers.sum(dim=1, keepdim=True)
    return sums.log2() + peak - chosen, powers, sums


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(hidden, head, targets)
        ctx.rows = rows
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        head_t = head.t()
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            bits = _logits_in_bits(hidden[part], head_t)
            losses[part] = _losses_and_powers(bits, targets[part, None])[0][:, 0]
        return losses.mul_(LN_2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, head, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            slope = torch.softmax((hidden[part] @ head.t()).float(), dim=1)
            slope.scatter_add_(1, targets[part, None], slope.new_full((len(slope), 1), -1.0))
            slope = (slope * grad[part, None]).to(hidden.dtype)
            grad_hidden[part] = slope @ head
            grad_head += slope.t() @ hidden[part]
        return grad_hidden, grad_head.to(head.dtype), None, None


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, rows: int, slope_of: SlopeOf
    ) -> Tensor:
        share = 1.0 / max(1, len(hidden))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        # A small product is faster when its long side comes last; a large one is not worth
        # turning round at the end.
        turned = head.numel() < SMALL_HEAD
        grad_head: Tensor | None = None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            losses, slope = slope_of(hidden[part], head.t(), targets[part, None], share)
            total += losses
            torch.mm(slope, head, out=grad_hidden[part])
            left, right = (hidden[part], slope) if turned else (slope, hidden[part])
            if grad_head is None:
                grad_head = torch.mm(left.t(), right).float()
            elif slope.dtype == torch.float32:
                grad_head.addmm_(left.t(), right)
            else:
                grad_head += torch.mm(left.t(), right)
        if grad_head is None:
            grad_head = torch.zeros_like(head)
        elif turned:
            grad_head = grad_head.t().contiguous()
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        return total * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_head.mul_(grad), None, None, None


def _slope_in_place(
    hidden: Tensor, head_t: Tensor, column: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Return the sum of a block's losses and share * (p - one-hot), in the block's memory."""
    bits = _logits_in_bits(hidden, head_t)
    losses, powers, sums = _losses_and_powers(bits, column)
    slope = powers.mul_(share / sums)
    slope.scatter_add_(1, column, slope.new_full((1, 1), -share).expand(len(slope), 1))
    return losses.sum() * LN_2, slope.to(hidden.dtype)


def _slope(hidden: Tensor, head_t: Tensor, column: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The same without writing over anything, as the compiler wants it."""
    logits = torch.mm(hidden, head_t)
    full = logits.float()
    logarithms = torch.log_softmax(full, dim=1)
    places = torch.arange(full.shape[1], device=full.device)
    slope = share * (logarithms.exp() - (places == column).float())
    return -logarithms.gather(1, column).sum(), slope.to(hidden.dtype)


@functools.cache
def _compiled_slope() -> SlopeOf:
    compiled: SlopeOf = torch.compile(_slope, dynamic=False)
    return compiled
