"""Speed and losses of a training run, reported now and then.

Rules: losses stay on the device; reading them is the one wait for it, about once a second. A
loss that is no number ends the run. Steps before the plan's first one were somebody else's
and count in nothing but the tokens in all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from smalltalk_fed.errors import UserError
from smalltalk_fed.train.plan import REPORT_S, Progress, TrainPlan, TrainResult, curve_of
from smalltalk_fed.train.state import TrainState


@dataclass
class Reporter:
    """Watches one process's part of a run; `first_step` is where it began."""

    plan: TrainPlan
    state: TrainState
    started: float
    first_step: int
    on_progress: Callable[[Progress], None] | None
    reported_at: float = 0.0
    reported_step: int = 0

    def __post_init__(self) -> None:
        self.reported_at, self.reported_step = self.started, self.first_step

    def report(self) -> None:
        """Report if it is time to."""
        now = time.monotonic()
        step = self.state.step
        if now - self.reported_at < REPORT_S and step < self.plan.steps:
            return
        loss = self._loss(self.reported_step, step)
        speed = self._tokens(self.reported_step, step) / max(now - self.reported_at, 1e-9)
        self.reported_at, self.reported_step = now, step
        if self.on_progress is not None:
            self.on_progress(Progress(step, self.plan.steps, loss, speed))

    def check(self) -> None:
        """Raise UserError when a loss so far is no number."""
        self._loss(self.plan.start_step, self.state.step)

    def result(self, finished: bool) -> TrainResult:
        """What came of the run."""
        start = self.plan.start_step
        losses = self.state.losses_T[start : self.state.step].tolist()
        seconds = time.monotonic() - self.started
        here = self._tokens(self.first_step, self.state.step)
        tail = losses[-max(1, len(losses) // 50) :]
        return TrainResult(
            finished=finished,
            step=self.state.step,
            loss_first=losses[0] if losses else 0.0,
            loss_last=math.fsum(tail) / max(1, len(tail)),
            loss_mean=math.fsum(losses) / max(1, len(losses)),
            curve=tuple((start + step, loss) for step, loss in curve_of(losses)),
            tokens=self._tokens(0, self.state.step),
            seconds=seconds,
            tokens_per_s=here / max(seconds, 1e-9),
        )

    def _loss(self, start: int, stop: int) -> float:
        if stop <= start:
            return 0.0
        loss = float(self.state.losses_T[start:stop].mean())  # the one wait for the device
        if not math.isfinite(loss):
            raise UserError(
                f"training diverged: the loss is {loss} at step {stop} of {self.plan.steps}; "
                "lower the optimizer's learning_rate or raise its warmup_steps."
            )
        return loss

    def _tokens(self, start: int, stop: int) -> int:
        return (stop - start) * self.plan.batch_sequences * self.plan.tokens
