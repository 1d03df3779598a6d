"""What a training run does, how its rate goes, and what it reports. Values only.

The optimizer is the paper's AdamW (arXiv 2410.03529, table 1): linear warm-up, then constant
or half a cosine down to `final_fraction` of the peak rate at the last step. A run that goes on
from weights alone keeps the schedule of its steps, times a short ramp of its own, since
AdamW's moments start anew there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.train.device import Dtype

REPORT_S = 1.0  # between two reports of progress
CURVE_RAW_POINTS = 100  # of a curve of losses, at most


class Stopped(Exception):
    """Work was told to stop before it was done."""


@dataclass(frozen=True)
class TrainPlan:
    """One training run. The loss is on the first `tokens` tokens of each sequence."""

    optimizer: Optimizer
    steps: int
    batch_sequences: int
    tokens: int
    accumulate: int = 1  # parts that a batch is computed in
    dtype: Dtype = "float32"
    compile_model: bool = False
    seed: int = 0  # of dropout, in models that have it
    start_step: int = 0  # the weights given are those after so many steps
    ramp_steps: int = 0  # the rate rises to the schedule's over so many steps from there

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step` (from 0)."""
        ramp = min(1.0, (step - self.start_step + 1) / (self.ramp_steps + 1))
        return rate_at(step, self.steps, self.optimizer) * ramp


@dataclass(frozen=True)
class Progress:
    """Where a training run is; `loss` is the mean since the last report, in nats a token."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float

    @property
    def fraction(self) -> float:
        """Part that is done, 0..1."""
        return self.step / self.steps if self.steps else 1.0


@dataclass(frozen=True)
class TrainResult:
    """What came of it. Losses are nats a token, tokens those that were predicted from."""

    finished: bool
    step: int
    loss_first: float
    loss_last: float
    loss_mean: float
    curve: tuple[tuple[int, float], ...]  # (step, mean loss up to it since the point before)
    tokens: int
    seconds: float  # of this process; a resumed run counts its own part
    tokens_per_s: float


def rate_at(step: int, steps: int, optimizer: Optimizer) -> float:
    """Return the learning rate of step `step` (from 0) of `steps`."""
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if optimizer.schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - 1 - warmup)
    floor = optimizer.final_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def curve_of(losses: list[float], points: int = CURVE_RAW_POINTS) -> tuple[tuple[int, float], ...]:
    """Return at most `points` (step, mean loss) of the losses of single steps."""
    count = min(points, len(losses))
    edges = [len(losses) * index // count for index in range(count + 1)] if count else []
    return tuple(
        (stop, math.fsum(losses[start:stop]) / (stop - start))
        for start, stop in itertools.pairwise(edges)
    )
