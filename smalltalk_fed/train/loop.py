"""The training loop, one for routers, experts, seeds and dense baselines.

It reads from top to bottom: batches come from a loader's thread, a batch may be computed in
parts, gradients are clipped, AdamW steps. Rules: a run is a function of the weights, the
order and the plan; a run that was interrupted and goes on from its checkpoint ends with the
same bits. Nothing in a step waits for a GPU: losses stay on the device and are read about
once a second. Ctrl-C ends the step that is under way, writes a checkpoint, and then raises.
What to train on, and from which weights, is `units`' part.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.data.loader import BatchLoader, RowSource
from smalltalk_fed.errors import WorldError
from smalltalk_fed.model.forward import is_lean, make_forward
from smalltalk_fed.model.loss import mean_loss
from smalltalk_fed.train.checkpoint import Checkpointer, CheckpointPolicy
from smalltalk_fed.train.device import Dtype, autocast
from smalltalk_fed.train.handing_out import HandOutPolicy, StateWriter
from smalltalk_fed.train.parallel import ONE_PROCESS, World
from smalltalk_fed.train.plan import Progress, TrainPlan, TrainResult
from smalltalk_fed.train.reporting import Reporter
from smalltalk_fed.train.state import TrainState, fingerprint

log = logging.getLogger(__name__)

# On a CPU a small model works on so few tokens at once that they stay in the cache.
CACHED_TOKENS = 1024
CACHED_PARAMETERS = 1_000_000


class MeanLoss(nn.Module):
    """Tokens int64[B, S] to the mean cross-entropy of predicting tokens 2..S; nats, fp32."""

    def __init__(
        self,
        model: nn.Module,
        dtype: Dtype = "float32",
        *,
        compile_model: bool = False,
        lean: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self._dtype: Dtype = dtype
        self._compiled = compile_model
        self._forward = make_forward(
            model, compile_model=compile_model, lean=lean and dtype == "float32"
        )

    def forward(self, tokens_BxS: Tensor) -> Tensor:
        """Return the mean loss, a scalar."""
        targets = tokens_BxS[:, 1:].reshape(-1)
        with autocast(self._dtype, tokens_BxS.device):
            if self._forward is None:  # logits are all that is known of this model
                logits = self.model(input_ids=tokens_BxS, use_cache=False).logits
                flat = logits[:, :-1].flatten(0, 1).float()
                return nn.functional.cross_entropy(flat, targets)
            hidden = self._forward(tokens_BxS)[:, :-1].flatten(0, 1)
            if self._dtype == "bfloat16":
                hidden = hidden.to(torch.bfloat16)
        return mean_loss(hidden, self._forward.head, targets, compiled=self._compiled)


def train(
    model: nn.Module,
    split: RowSource,
    order: np.ndarray,
    *,
    plan: TrainPlan,
    device: torch.device,
    checkpoint: CheckpointPolicy | None = None,
    hand_out: HandOutPolicy | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    world: World = ONE_PROCESS,
) -> TrainResult:
    """Train `model` in place on the sequences `order` of `split`, batch after batch.

    The last batch may be smaller; its loss is the mean over its own tokens. With `checkpoint`
    a run goes on where the newest good checkpoint of the same plan, order and start left it;
    with `hand_out` its weights are given out part-way.
    `should_stop` is asked after every step; when it says so, a checkpoint is written and the
    result's `finished` is False.
    Raises UserError when the loss is no number any more, WorldError when a checkpoint can't
    be written.
    """
    if math.ceil(len(order) / plan.batch_sequences) != plan.steps:
        raise ValueError(f"{len(order)} sequences are not {plan.steps} steps")
    name = ""
    if checkpoint is not None:
        name = checkpoint.run or fingerprint(plan, order, model)
    model.to(device).train()
    loss = MeanLoss(model, plan.dtype, compile_model=plan.compile_model, lean=world.lean)
    module = world.wrap(loss)
    optimizer = make_optimizer(model, plan.optimizer, device)
    losses_T = torch.zeros(plan.steps, dtype=torch.float32, device=device)
    state = TrainState(model, optimizer, losses_T, world)
    state.step = plan.start_step
    keeper, giver = None, None
    if checkpoint is not None:
        keeper = Checkpointer(checkpoint, name, state, writes=world.rank == 0)
    if hand_out is not None:
        giver = StateWriter(hand_out, plan.steps, world)
    rows = part_sequences(plan, model, world.size)
    order, weights_T = world.share(order, plan.batch_sequences)
    stopped = False
    with _seeded(plan.seed, device), _deferred_interrupt() as interrupted:
        if keeper is not None:
            keeper.restore()
        run = Reporter(plan, state, time.monotonic(), state.step, on_progress)
        batches = BatchLoader(
            split, order, plan.batch_sequences // world.size, plan.tokens, device, state.step
        )
        with batches:
            for batch in batches:
                _step(module, state, batch, rows, plan, float(weights_T[state.step]))
                state.step += 1
                run.report()
                wish = (should_stop is not None and should_stop()) or interrupted()
                stopped, save = world.agree(state.step, wish, keeper is not None and keeper.due)
                if stopped:
                    break
                if save and keeper is not None:
                    run.check()
                    keeper.save()
                if giver is not None and giver.due(state.step):
                    run.check()
                    giver.save(model, state.step)
        run.check()
        if giver is not None:
            giver.close()
        if keeper is not None:
            _save_last(keeper, stopped, world)
    if stopped and interrupted():
        raise KeyboardInterrupt
    return run.result(state.step >= plan.steps)


def make_optimizer(
    model: nn.Module, settings: Optimizer, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW with decay on matrices only, fused where torch has it."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=device.type in ("cpu", "cuda"),
    )


def part_sequences(plan: TrainPlan, model: nn.Module, processes: int = 1) -> int:
    """Return how many sequences of a batch are computed at once."""
    rows = -(-plan.batch_sequences // (plan.accumulate * processes))
    if is_lean(model) and sum(w.numel() for w in model.parameters()) <= CACHED_PARAMETERS:
        rows = min(rows, max(1, CACHED_TOKENS // plan.tokens))
    return rows


def _save_last(keeper: Checkpointer, stopped: bool, world: World) -> None:
    """Leave a checkpoint: of a stopped run always, of a finished one if it is worth the wait."""
    try:
        if world.lead(stopped or keeper.worth_waiting):
            keeper.save(wait=True)
        keeper.close()
    except WorldError as error:
        if stopped:
            raise
        log.warning("training is finished, and its weights are handed in all the same: %s", error)


def _step(
    module: nn.Module, state: TrainState, batch: Tensor, rows: int, plan: TrainPlan, weight: float
) -> None:
    """Take one step on one batch; `weight` is this process's share of it."""
    world, optimizer = state.world, state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(state.step)
    parts = batch.split(rows)
    total = state.losses_T[state.step]
    for index, part in enumerate(parts):
        with world.gradients(module, last=index == len(parts) - 1):
            loss = module(part) * (weight * len(part) / len(batch))
            loss.backward()
        total += loss.detach()
    world.average(total)
    nn.utils.clip_grad_norm_(state.weights, plan.optimizer.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with torch's random state from `seed`, and give the old one back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait for the end of the step; the second works at once."""
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(caught)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
