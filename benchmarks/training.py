"""Training speed on the CPU: our loop against a Hugging Face Trainer and a plain PyTorch loop.

Same model, data, batch and optimizer settings; whole short trainings of each are measured in
turns, and the best of each counts. Prints tokens/s and ratios (above 1: ours is faster);
`--json` for machines. Needs the `dev` extra (accelerate, for the Trainer).

    python benchmarks/training.py --threads 1
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan, rate_at

SETTINGS = Optimizer(learning_rate=1e-3, warmup_steps=2, clip=1.0)


@dataclass(frozen=True)
class Case:
    """What is trained, and for how long."""

    preset: str
    vocabulary: int
    tokens: int
    batch_sequences: int
    steps: int

    @property
    def tokens_in_all(self) -> int:
        """Tokens that one measurement trains on."""
        return self.steps * self.batch_sequences * self.tokens


CASES = (Case("mini", 1024, 256, 16, 12), Case("30m", 32_000, 256, 4, 3))


class RandomRows:
    """Random sequences in memory; a data set for the Trainer too."""

    def __init__(self, count: int, tokens: int, vocabulary: int) -> None:
        values = np.random.default_rng(0).integers(0, vocabulary, (count, tokens))
        self.tokens_NxS = values.astype(np.uint16)

    def __len__(self) -> int:
        return len(self.tokens_NxS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.tokens_NxS[index].astype(np.int64))
        return {"input_ids": row, "labels": row}

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.tokens_NxS[ids, :tokens]


def ours(model: LlamaForCausalLM, split: RandomRows, case: Case) -> None:
    """The product's loop."""
    plan = TrainPlan(SETTINGS, case.steps, case.batch_sequences, case.tokens)
    train(model, split, np.arange(len(split)), plan=plan, device=torch.device("cpu"))


def plain(model: LlamaForCausalLM, split: RandomRows, case: Case) -> None:
    """What one writes by hand: transformers' loss, torch's AdamW, nothing clever."""
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(SETTINGS.beta1, SETTINGS.beta2), weight_decay=0.1
    )
    model.train()
    for step in range(case.steps):
        ids = np.arange(step * case.batch_sequences, (step + 1) * case.batch_sequences)
        tokens = torch.from_numpy(split.rows(ids).astype(np.int64))
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, case.steps, SETTINGS)
        optimizer.step()
        optimizer.zero_grad()


def trainer(model: LlamaForCausalLM, split: RandomRows, case: Case) -> None:
    """Hugging Face's Trainer with all that costs time and is not training turned off."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=case.batch_sequences,
            max_steps=case.steps,
            learning_rate=SETTINGS.learning_rate,
            adam_beta2=SETTINGS.beta2,
            weight_decay=0.1,
            max_grad_norm=SETTINGS.clip,
            lr_scheduler_type="cosine",
            warmup_steps=SETTINGS.warmup_steps,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        quiet = Trainer(model=model, args=arguments, train_dataset=split)
        quiet.remove_callback(PrinterCallback)
        quiet.train()


def compare(case: Case, repeats: int) -> dict[str, object]:
    """Measure one case; each way trains a copy of the same model."""
    model = build_model(PRESETS[case.preset], case.vocabulary, case.tokens, b"benchmark")
    split = RandomRows(case.steps * case.batch_sequences, case.tokens, case.vocabulary)
    ways: dict[str, Callable[[LlamaForCausalLM, RandomRows, Case], None]] = {
        "ours": ours,
        "plain": plain,
        "trainer": trainer,
    }
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            twin = copy.deepcopy(model)
            started = time.perf_counter()
            way(twin, split, case)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return {
        "model": case.preset,
        "parameters": PRESETS[case.preset].parameters(case.vocabulary),
        "vocabulary": case.vocabulary,
        "sequence_tokens": case.tokens,
        "batch_sequences": case.batch_sequences,
        "tokens_per_s": {name: case.tokens_in_all / s for name, s in seconds.items()},
        "ratio_to_plain": seconds["plain"] / seconds["ours"],
        "ratio_to_trainer": seconds["trainer"] / seconds["ours"],
    }


def main() -> None:
    """Measure the demo's shape and about 30M parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    cases = [compare(case, arguments.repeats) for case in CASES]
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "cases": cases}))
        return
    for case in cases:
        print(
            f"{case['model']} ({case['parameters']:,} parameters): "
            f"{case['ratio_to_plain']:.2f}x of a plain loop, "
            f"{case['ratio_to_trainer']:.2f}x of Hugging Face's Trainer"
        )


if __name__ == "__main__":
    main()
