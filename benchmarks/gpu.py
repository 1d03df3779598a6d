"""One GPU, under ten minutes, no network: how fast an expert trains and 32 routers score.

Trains preset `335m` in bf16 (S = 1024) for as many steps as fit the time given, after warm-up
steps that torch.compile takes its time in; reports tokens/s and the model FLOPs utilisation;
scores prefixes (M = 256) with 32 routers, stacked and in a loop over plain Hugging Face
models. Writes JSON. Without a CUDA GPU it says so, writes that, and measures nothing.

    python benchmarks/gpu.py --out gpu.json

MFU counts the FLOPs of method.md's section 5 (three forwards a step, no recomputation) and
divides by the dense bf16 peak that the maker states for the card.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.config.shapes import PRESETS, ModelShape
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import Progress, TrainPlan
from smalltalk_fed.train.scoring import score

VOCABULARY, TOKENS, PREFIX, ROUTERS = 32_000, 1024, 256, 32
# Dense bf16 peaks of the makers' data sheets, FLOP/s.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}


class RandomRows:
    """Random sequences in memory."""

    def __init__(self, count: int, tokens: int) -> None:
        values = np.random.default_rng(0).integers(0, VOCABULARY, (count, tokens))
        self.tokens_NxS = values.astype(np.uint16)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.tokens_NxS[ids, :tokens]


def flops_per_token(shape: ModelShape, tokens: int) -> float:
    """FLOPs of one training step per token; causal attention is counted in full, as usual."""
    body = 8 * shape.hidden**2 + 6 * shape.hidden * shape.feed_forward_width
    attention = 4 * tokens * shape.hidden
    return 3.0 * (shape.layers * (body + attention) + 2 * shape.hidden * VOCABULARY)


def measure_training(device: torch.device, batch: int, steps: int, warm: int) -> dict[str, object]:
    """Train and time the steps after the first `warm`."""
    shape = PRESETS["335m"]
    model = build_model(shape, VOCABULARY, TOKENS, b"gpu")
    split = RandomRows(4 * batch, TOKENS)
    order = np.tile(np.arange(4 * batch), -(-(steps + warm) // 4))[: (steps + warm) * batch]
    plan = TrainPlan(
        Optimizer(learning_rate=5e-4, warmup_steps=10, clip=0.1),
        steps + warm,
        batch,
        TOKENS,
        dtype="bfloat16",
        compile_model=True,
    )
    marks: list[tuple[int, float]] = []
    torch.cuda.reset_peak_memory_stats(device)

    def mark(progress: Progress) -> None:
        torch.cuda.synchronize(device)
        marks.append((progress.step, time.perf_counter()))

    result = train(model, split, order, plan=plan, device=device, on_progress=mark)
    timed = [(step, at) for step, at in marks if step >= warm]
    if len(timed) < 2:
        raise SystemExit("too few steps to time; give more with --steps")
    (first, started), (last, ended) = timed[0], timed[-1]
    tokens_per_s = (last - first) * batch * TOKENS / (ended - started)
    name = torch.cuda.get_device_name(device)
    peak = next((value for card, value in PEAKS.items() if card in name), None)
    used = tokens_per_s * flops_per_token(shape, TOKENS)
    return {
        "model": "335m",
        "batch_sequences": batch,
        "sequence_tokens": TOKENS,
        "steps_timed": last - first,
        "tokens_per_s": tokens_per_s,
        "flops_per_s": used,
        "peak_flops_per_s": peak,
        "mfu": used / peak if peak else None,
        "memory_bytes": torch.cuda.max_memory_allocated(device),
        "loss_first": result.loss_first,
        "loss_last": result.loss_last,
    }


def measure_scoring(device: torch.device, sequences: int, repeats: int) -> dict[str, object]:
    """Stacked scoring against a loop over the same models."""
    shape = PRESETS["router-4.4m"]
    models = [build_model(shape, VOCABULARY, PREFIX, bytes([e])) for e in range(ROUTERS)]
    split, ids = RandomRows(sequences, PREFIX), np.arange(sequences)
    loops = [copy.deepcopy(model).to(device, torch.bfloat16).eval() for model in models]

    def ours() -> np.ndarray:
        return score(
            models, split, ids, PREFIX, batch_sequences=64, dtype="bfloat16", device=device
        )

    @torch.inference_mode()
    def plain() -> np.ndarray:
        tokens = torch.from_numpy(split.rows(ids).astype(np.int64)).to(device)
        parts = []
        for part in tokens.split(64):
            columns = []
            for model in loops:
                logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"
                )
                columns.append(-losses.view(len(part), -1).sum(dim=1))
            parts.append(torch.stack(columns, dim=1))
        return torch.cat(parts).cpu().numpy()

    np.testing.assert_allclose(ours(), plain(), rtol=0.02)
    seconds = {"ours": float("inf"), "plain": float("inf")}
    for _ in range(repeats):
        for name, way in (("ours", ours), ("plain", plain)):
            started = time.perf_counter()
            way()
            torch.cuda.synchronize(device)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return {
        "routers": ROUTERS,
        "router": "router-4.4m",
        "prefix_tokens": PREFIX,
        "sequences": sequences,
        "seconds": seconds,
        "sequences_per_s": sequences / seconds["ours"],
        "ratio": seconds["plain"] / seconds["ours"],
    }


def main() -> None:
    """Measure what there is, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        device = torch.device("cuda")
        report = {
            "device": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "training": measure_training(device, arguments.batch, arguments.steps, warm=10),
            "scoring": measure_scoring(device, sequences=4096, repeats=3),
        }
    else:
        report = {"device": None, "why": "there is no CUDA GPU here; nothing was measured"}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
