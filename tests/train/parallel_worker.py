"""One process of a group: trains the test's model and, at rank 0, writes what came of it."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.model.build import build_model
from smalltalk_fed.model.state import state_to_file
from smalltalk_fed.train.checkpoint import CheckpointPolicy
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.parallel import joined_world
from smalltalk_fed.train.plan import TrainPlan


class Rows:
    """Sequences in memory."""

    def __init__(self) -> None:
        self.tokens = np.random.default_rng(0).integers(0, 32, (64, 12)).astype(np.uint16)

    def rows(self, ids, tokens=None):
        return self.tokens[ids, :tokens]


def _stop_at(step: int | None):
    """Say stop after so many steps."""
    steps = itertools.count(1)
    return lambda: step is not None and next(steps) >= step


def run(folder: Path, strategy: str) -> None:
    """Train twice: in one go, and stopped half-way and resumed."""
    torch.set_num_threads(1)
    shape = ModelShape(hidden=16, layers=2, heads=2, feed_forward=32)
    order = np.random.default_rng(1).integers(0, 64, 9 * 8 + 3)
    optimizer = Optimizer(learning_rate=0.01, warmup_steps=2, clip=0.5)
    plan = TrainPlan(optimizer, steps=10, batch_sequences=8, tokens=12, accumulate=2)
    with joined_world(strategy) as (world, device):
        for name, stop_at in (("whole", None), ("cut", 8), ("resumed", None)):
            model = build_model(shape, 32, 12, b"key")
            stop = _stop_at(stop_at)
            policy = None if name == "whole" else CheckpointPolicy(folder / "checkpoints", 1e9)
            result = train(
                model,
                Rows(),
                order,
                plan=plan,
                device=device or torch.device("cpu"),
                checkpoint=policy,
                should_stop=stop,
                world=world,
            )
            state_to_file(model, folder / f"{name}.safetensors", write=world.rank == 0)
            if world.rank == 0:
                facts = {"size": world.size, "step": result.step, "curve": result.curve}
                (folder / f"{name}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
