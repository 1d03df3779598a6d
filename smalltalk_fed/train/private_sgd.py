"""DP-SGD: training a router so that no one sequence shows in it much.

    repeat for every step (Abadi et al. 2016, algorithm 1):
        draw each sequence of the silo by itself with probability q = B/n
        the gradient of each drawn sequence, cut to the norm C
        AdamW on (their sum + N(0, (noise * C)^2)) / B

What stands in for `loop.train` where `privacy.router_noise` is above 0. Rules: draws and noise
come from `SecretNoise` and from nothing else, so that a training is *not* a function of the
run's seed, and two of the same unit differ; a checkpoint has weights and moments and no random
state, so that who goes on from it draws anew and noise is never used twice; losses, sizes of
batches and norms are functions of the text without noise, so none is reported. A batch may be
empty: then the step is noise alone.

Gradients of single sequences come from opacus' hooks on transformers' own modules: our fast
forward and losses go past those modules, and would leave them out. What the noise is worth is
`privacy_cost`'s part, and that a unit is answered once `releases`'.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.errors import UserError
from smalltalk_fed.train.checkpoint import Checkpointer, CheckpointPolicy
from smalltalk_fed.train.loop import make_optimizer
from smalltalk_fed.train.parallel import ONE_PROCESS
from smalltalk_fed.train.plan import REPORT_S, TrainPlan
from smalltalk_fed.train.secret_noise import SecretNoise
from smalltalk_fed.train.state import TrainState, fingerprint

# Gradients of single sequences that stand in memory at once; more gain nothing on a CPU.
PART_BYTES, PART_ROWS_MIN = 1 << 25, 8

OnProgress = Callable[[float, dict[str, float]], None]


@dataclass(frozen=True)
class PrivatePlan(TrainPlan):
    """As `TrainPlan`, fp32; `batch_sequences` is B, the *expected* number of sequences a step.

    `noise` is the noise multiplier, `clip` is C. The optimizer's own `clip` is not used.
    """

    noise: float = 1.0
    clip: float = 1.0


@dataclass(frozen=True)
class PrivateResult:
    """What may be told of a training: `tokens` are those expected, whatever was drawn."""

    finished: bool
    step: int
    tokens: int
    seconds: float  # of this process
    tokens_per_s: float

    @property
    def figures(self) -> dict[str, float]:
        """Figures that a unit reports; speed only where this process trained."""
        told = {"steps": float(self.step), "tokens": float(self.tokens), "seconds": self.seconds}
        return told | ({"tokens_per_s": self.tokens_per_s} if self.tokens_per_s else {})


def train_privately(
    model: nn.Module,
    split: RowSource,
    sequences: int,
    *,
    plan: PrivatePlan,
    device: torch.device,
    checkpoint: CheckpointPolicy | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    noise: SecretNoise | None = None,
) -> PrivateResult:
    """Train `model` in place on the first `sequences` of `split`, all n of the silo.

    Every step draws from all of them, so that q is B/n throughout. `on_progress` is told the
    fraction that is done, steps and speed, about once a second. `noise` is for tests.
    `should_stop` and `checkpoint` as in `loop.train`.
    Raises UserError when opacus is missing or the weights are no numbers any more, WorldError
    when a checkpoint can't be written.
    """
    if sequences < 1:
        raise ValueError("there is no sequence to train on")
    noise = noise or SecretNoise()
    model.to(device).train()
    weights = trained_weights(model)
    optimizer = make_optimizer(model, plan.optimizer, device)
    state = TrainState(model, optimizer, torch.zeros(plan.steps, device=device), ONE_PROCESS)
    keeper = None
    if checkpoint is not None:
        name = checkpoint.run or fingerprint(plan, np.arange(sequences), model)
        keeper = Checkpointer(checkpoint, name, state)
        keeper.restore()
    watch = _Watch(plan, state.step, on_progress)
    rate = min(1.0, plan.batch_sequences / sequences)
    with per_sequence_gradients(model):
        while state.step < plan.steps:
            ids = noise.chosen(sequences, rate)
            sums = clipped_sums(model, split, ids, plan.tokens, plan.clip, device)
            _step(weights, sums, optimizer, plan, state.step, rate * sequences, noise)
            state.step += 1
            watch.report(state.step)
            if should_stop is not None and should_stop():
                break
            if keeper is not None and keeper.due:
                _check(model)
                keeper.save()
    _check(model)
    finished = state.step >= plan.steps
    if keeper is not None:
        if not finished or keeper.worth_waiting:
            keeper.save(wait=True)
        keeper.close()
    return watch.result(state.step, finished)


def trained_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that training changes, each once, in the model's order."""
    return [weight for weight in model.parameters() if weight.requires_grad]


@contextmanager
def per_sequence_gradients(model: nn.Module) -> Iterator[None]:
    """Let backward passes leave each sequence's own gradient in `weight.grad_sample`.

    A matrix that is both embedding and head gets the sum of its two parts, by sequence.
    Raises UserError when opacus is not installed.
    """
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        raise UserError(
            "privacy.router_noise needs opacus, which is not installed; "
            "run: pip install 'smalltalk-fed[privacy]'"
        ) from None
    hooks = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    try:
        with warnings.catch_warnings():  # the embedding's input has no gradient: as it should be
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.remove_hooks()
        for module in model.modules():
            vars(module).pop("activations", None)  # the hooks' own; of text, if this was broken off
        for weight in model.parameters():
            for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
                if hasattr(weight, name):
                    delattr(weight, name)


def clipped_sums(
    model: nn.Module,
    split: RowSource,
    ids: np.ndarray,
    tokens: int,
    clip: float,
    device: torch.device,
) -> list[Tensor]:
    """Return the sum over `ids` of each sequence's gradient, cut to the norm `clip` over all.

    One tensor a trained weight, in the model's order; within `per_sequence_gradients`. The loss
    of a sequence is the mean over its tokens 2..`tokens`, in nats. Computed a few sequences at
    a time, so that memory does not grow with the batch.
    """
    weights = trained_weights(model)
    sums = [torch.zeros_like(weight) for weight in weights]
    rows = max(PART_ROWS_MIN, PART_BYTES // sum(weight.nbytes for weight in weights))
    for start in range(0, len(ids), rows):
        part = split.rows(ids[start : start + rows], tokens).astype(np.int64)
        _sequence_losses(model, torch.from_numpy(part).to(device)).sum().backward()
        grads = [_taken(weight) for weight in weights]
        norms_B = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        factors_B = (clip / norms_B.clamp(min=clip * 1e-6)).clamp(max=1.0)
        for total, grad in zip(sums, grads, strict=True):
            total.add_(torch.tensordot(factors_B, grad, dims=1))
    return sums


def _sequence_losses(model: Any, tokens_BxS: Tensor) -> Tensor:
    """Return each sequence's mean loss, fp32[B], through the modules that the hooks watch."""
    logits = model(input_ids=tokens_BxS, use_cache=False).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens_BxS[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(tokens_BxS), -1).mean(dim=1)


def _taken(weight: Any) -> Tensor:
    """Return [B, ...], the gradient of each sequence, and clear it; the common one goes too."""
    grad: Tensor = weight.grad_sample
    weight.grad_sample = weight.grad = None
    return grad


def _step(
    weights: list[nn.Parameter],
    sums: list[Tensor],
    optimizer: torch.optim.AdamW,
    plan: PrivatePlan,
    step: int,
    expected: float,
    noise: SecretNoise,
) -> None:
    """Add noise to the sums, divide by the expected number of sequences, and let AdamW step."""
    for weight, total in zip(weights, sums, strict=True):
        drawn = noise.normal(total.shape) * (plan.noise * plan.clip)
        # In float64, rounded once: see `secret_noise`.
        weight.grad = ((total.cpu().double() + drawn) / expected).float().to(weight.device)
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check(model: nn.Module) -> None:
    """Raise UserError when a weight is no number; the losses may not be looked at for that."""
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise UserError(
            "training diverged: a router's weights are no numbers any more; lower "
            "router.optimizer.learning_rate or privacy.router_noise."
        )


class _Watch:
    """Speed and progress, of what is public alone: steps, and tokens as expected."""

    def __init__(self, plan: PrivatePlan, step: int, on_progress: OnProgress | None) -> None:
        self._plan, self._first, self._on_progress = plan, step, on_progress
        self._began = self._reported = time.monotonic()

    def report(self, step: int) -> None:
        """Report if it is time to."""
        now = time.monotonic()
        if self._on_progress is None or (
            now - self._reported < REPORT_S and step < self._plan.steps
        ):
            return
        self._reported = now
        figures = {"step": float(step), "tokens_per_s": self._speed(step, now)}
        self._on_progress(step / self._plan.steps, figures)

    def result(self, step: int, finished: bool) -> PrivateResult:
        """What came of it."""
        now = time.monotonic()
        return PrivateResult(
            finished=finished,
            step=step,
            tokens=self._tokens(step),
            seconds=now - self._began,
            tokens_per_s=self._speed(step, now),
        )

    def _tokens(self, steps: int) -> int:
        return steps * self._plan.batch_sequences * self._plan.tokens

    def _speed(self, step: int, now: float) -> float:
        return self._tokens(step - self._first) / max(now - self._began, 1e-9)
