"""Scoring with E routers: ours against loops over plain Hugging Face routers.

Both are measured alternately in one run, on the same weights and sequences; what is compared
is the best of several whole passes. The rival is the best of its micro-batch sizes. Prints
ratios (above 1: ours is faster); `--json` for machines.

    python benchmarks/scoring.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.scoring import score

MICRO_BATCHES = (16, 32, 64, 128)


class RandomRows:
    """Random sequences in memory."""

    def __init__(self, count: int, tokens: int, vocabulary: int) -> None:
        self.tokens_NxS = np.random.default_rng(0).integers(0, vocabulary, (count, tokens))

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.tokens_NxS[ids, :tokens].astype(np.uint16)


@torch.inference_mode()
def plain_scores(models: list[torch.nn.Module], split: RandomRows, micro: int) -> np.ndarray:
    """Scores as a loop over transformers' routers gives them."""
    tokens = torch.from_numpy(split.tokens_NxS)
    parts = []
    for part in tokens.split(micro):
        columns = []
        for model in models:
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            flat = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"
            )
            columns.append(-flat.view(len(part), -1).sum(dim=1))
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts).numpy()


def best_seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each way, taken in turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def compare(
    preset: str, experts: int, vocabulary: int, prefix: int, sequences: int, repeats: int
) -> dict[str, object]:
    """Measure one case."""
    shape = PRESETS[preset]
    models = [build_model(shape, vocabulary, prefix, bytes([e])).eval() for e in range(experts)]
    split = RandomRows(sequences, prefix, vocabulary)
    ids = np.arange(sequences)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: score(models, split, ids, prefix, batch_sequences=64)
    }
    for micro in MICRO_BATCHES:
        ways[f"plain loop, {micro}"] = lambda micro=micro: plain_scores(models, split, micro)
    np.testing.assert_allclose(ways["ours"](), ways["plain loop, 64"](), rtol=1e-3)
    seconds = best_seconds(ways, repeats)
    rival = min((name for name in seconds if name != "ours"), key=lambda name: seconds[name])
    return {
        "router": preset,
        "experts": experts,
        "vocabulary": vocabulary,
        "prefix_tokens": prefix,
        "sequences": sequences,
        "seconds": seconds,
        "best_rival": rival,
        "ratio": seconds[rival] / seconds["ours"],
    }


def main() -> None:
    """Measure E = 8 and 32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="the paper's router as well")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [
        compare("router-mini", 8, 1024, 64, 256, arguments.repeats),
        compare("router-mini", 32, 1024, 64, 256, arguments.repeats),
    ]
    if arguments.large:
        cases.append(compare("router-4.4m", 8, 32_000, 256, 16, max(1, arguments.repeats // 2)))
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "cases": cases}))
        return
    for case in cases:
        print(
            f"{case['router']}, E = {case['experts']}, M = {case['prefix_tokens']}: "
            f"{case['ratio']:.2f}x of {case['best_rival']}"
        )


if __name__ == "__main__":
    main()
