"""One model by federated averaging over silos (McMahan and others 2017, algorithm 1).

In every round each silo goes on from the average with fresh moments of AdamW, for its part of
the steps, and the average weighs silos by the sequences that they trained on. A silo's steps are
its part of all text, of the steps that all experts of the mixture take together, and its
schedule (warm-up, cosine) runs over the whole of the training, as an expert's does.

Rules: a silo's update is a function of the average, the silo and the round; nothing else is
kept between rounds. So any engine can carry it: `run` is the plain loop, `private_flower` has
the same updates under Flower's FedAvg. The average is computed as Flower computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from private_silos import Silo
from torch import nn

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.mixture.permutation import training_order
from smalltalk_fed.train.expert_plans import base_plan, for_share
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan

CPU = torch.device("cpu")
RAMP_STEPS = 2  # of each round, since AdamW's moments start at zero

Weights = Mapping[str, np.ndarray]  # fp32 by name


@dataclass(frozen=True)
class Averaging:
    """Federated averaging of one model of the experts' shape; `steps` are those of all silos."""

    manifest: RunManifest
    silos: Sequence[Silo]
    steps: int
    rounds: int

    def begin(self) -> dict[str, np.ndarray]:
        """The model that all silos start from."""
        return _weights(build_expert(self.manifest, "fedavg"))

    def plan(self, seat: int) -> TrainPlan:
        """All of a silo's steps."""
        part = len(self.silos[seat].train) / sum(len(silo.train) for silo in self.silos)
        base = base_plan(self.manifest, CPU)
        return for_share(replace(base, steps=self.steps // len(self.silos)), part * len(self.silos))

    def update(self, seat: int, round_: int, average: Weights) -> tuple[dict[str, np.ndarray], int]:
        """What a silo makes of the average in round `round_` (from 0); of how many sequences."""
        plan, silo = self.plan(seat), self.silos[seat]
        start = round_ * plan.steps // self.rounds
        stop = (round_ + 1) * plan.steps // self.rounds
        if start == stop:
            return {name: np.asarray(weight) for name, weight in average.items()}, 0
        count = plan.steps * plan.batch_sequences
        seed, every = self.manifest.config.run.seed, np.arange(len(silo.train))
        order = training_order(seed, every, count, "fedavg", seat)
        ramp = min(RAMP_STEPS, (stop - start) // 4)
        model = self.model(average)
        part = replace(plan, start_step=start, ramp_steps=ramp)
        train(model, silo.train, order, plan=part, device=CPU, should_stop=_after(stop - start))
        return _weights(model), (stop - start) * plan.batch_sequences

    def model(self, weights: Weights) -> nn.Module:
        """A model with these weights."""
        model = build_expert(self.manifest, "fedavg")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.from_numpy(np.array(weights[name])))
        return model

    def run(self) -> dict[str, np.ndarray]:
        """The model after all rounds, silo by silo in this process."""
        average = self.begin()
        for round_ in range(self.rounds):
            updates = [self.update(seat, round_, average) for seat in range(len(self.silos))]
            average = weighted_mean([u for u in updates if u[1]])
        return average


def weighted_mean(updates: Sequence[tuple[Weights, int]]) -> dict[str, np.ndarray]:
    """The mean of models, weighed by their sequences; in fp32, one update after the other."""
    total = sum(sequences for _, sequences in updates)
    mean: dict[str, np.ndarray] = {}
    for weights, sequences in updates:
        for name, weight in weights.items():
            part = weight * (sequences / total)
            mean[name] = mean[name] + part if name in mean else part
    return mean


def _weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: w.detach().numpy().copy() for name, w in model.named_parameters()}


def _after(steps: int) -> Callable[[], bool]:
    """Stop when asked for the `steps`th time, which is after so many steps."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) >= steps
