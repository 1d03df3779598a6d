"""What checkpoints take from training: the same training with and without them, in turns.

Checkpoints come as often as the share allows (or every `--every-s`), so that the figure is
what the share promises at the worst. All threads share `--cores` cores: on one, the thread
that writes takes its time from training. `cost` is 1 - (time without / time with), the median
over the pairs; on a busy machine single pairs are off by more than the share. `counted` is
what the checkpoints themselves say that they took: training held up, and the writer's
processor time. The first one of a process is due by a guess, all others by what the last took.

    python benchmarks/checkpoint.py --preset mini --seconds 20 --pairs 3
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.checkpoint import CheckpointPolicy
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan

SETTINGS = Optimizer(learning_rate=1e-3, warmup_steps=2, clip=1.0)
KEEP_ALL = 1_000_000


class RandomRows:
    """Random sequences in memory."""

    def __init__(self, count: int, tokens: int, vocabulary: int) -> None:
        values = np.random.default_rng(0).integers(0, vocabulary, (count, tokens))
        self.tokens_NxS = values.astype(np.uint16)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.tokens_NxS[ids, :tokens]


def seconds_of(
    model: LlamaForCausalLM,
    split: RandomRows,
    batch: int,
    steps: int,
    checkpoint: CheckpointPolicy | None,
) -> float:
    """Train a copy; the seconds from its first step to its end."""
    twin = copy.deepcopy(model)
    order = np.arange(steps * batch) % len(split.tokens_NxS)
    plan = TrainPlan(SETTINGS, steps, batch, split.tokens_NxS.shape[1])
    result = train(twin, split, order, plan=plan, device=torch.device("cpu"), checkpoint=checkpoint)
    return result.seconds


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """All pairs of one shape."""
    shape, batch = PRESETS[arguments.preset], arguments.batch_sequences
    model = build_model(shape, arguments.vocabulary, arguments.tokens, b"benchmark")
    split = RandomRows(64, arguments.tokens, arguments.vocabulary)
    seconds_of(model, split, batch, 2, None)  # what only the first training pays
    steps = max(4, round(4 * arguments.seconds / seconds_of(model, split, batch, 4, None)))
    pairs, counts, busy_s = [], [], []
    for number in range(arguments.pairs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            policy = CheckpointPolicy(folder, arguments.every_s, arguments.share, keep=KEEP_ALL)
            took: dict[bool, float] = {}
            for on in (True, False) if number % 2 else (False, True):
                took[on] = seconds_of(model, split, batch, steps, policy if on else None)
            pairs.append((took[False], took[True]))
            metas = [json.loads(path.read_text()) for path in folder.glob("*/state.json")]
            counts.append(len(metas))
            busy_s += [meta["busy_s"] for meta in metas]
    return {
        "model": arguments.preset,
        "parameters": shape.parameters(arguments.vocabulary),
        "share": arguments.share,
        "cores": arguments.cores,
        "steps": steps,
        "pairs_s": [[round(off, 2), round(on, 2)] for off, on in pairs],
        "checkpoints": counts,
        "busy_s": round(statistics.mean(busy_s), 4) if busy_s else 0.0,
        "counted": sum(busy_s) / sum(on for _, on in pairs),
        "cost": statistics.median(1 - off / on for off, on in pairs),
    }


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini", choices=sorted(PRESETS))
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch-sequences", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each training, about")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--every-s", type=float, default=0.0)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    torch.set_num_threads(arguments.cores)
    began = time.monotonic()
    found = measure(arguments) | {"wall_s": round(time.monotonic() - began, 1)}
    if arguments.json:
        print(json.dumps(found))
        return
    cost, counted = (100 * float(str(found[name])) for name in ("cost", "counted"))
    print(
        f"{found['model']} ({found['parameters']:,} parameters): checkpoints take {cost:.1f} % of "
        f"training (by their own count {counted:.1f} %) at a share of {100 * arguments.share:g} %; "
        f"{found['checkpoints']} checkpoints of {found['busy_s']} s"
    )


if __name__ == "__main__":
    main()
