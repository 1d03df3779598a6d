"""After the run: the dense model, both judged on the same held-out text, and samples.

Rules: all through `smalltalk`'s own commands; the dense model uses all cores, as the nodes
did together.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from smalltalk_fed.demo.children import Children, program
from smalltalk_fed.demo.plan import Step
from smalltalk_fed.demo.prompts import heldout_prompts
from smalltalk_fed.demo.stage import Stage, available_cores

SAMPLE_TOKENS = 72
SAMPLE_TEMPERATURE = 0.7


def baseline(stage: Stage, children: Children) -> None:
    """Train the dense model on as many tokens as all experts together."""
    folder = stage.folder
    progress = folder.work / "baseline-progress.json"

    def work() -> str:
        child = children.start(
            "baseline",
            [
                *(program("smalltalk"), "baseline", "--config", str(folder.config)),
                *("--corpus", str(folder.corpus), "--out", str(folder.dense)),
                *("--device", "cpu", "--threads", "1"),
                *("--processes", str(_processes(stage)), "--progress-file", str(progress)),
            ],
        )
        while not child.ended:
            time.sleep(0.5)
            _show_progress(stage, progress)
        child.check()
        children.end(child)
        stage.findings.baseline = json.loads((folder.dense / "baseline.json").read_bytes())
        return f"{stage.findings.baseline['tokens'] / 1e6:.1f}M tokens"

    stage.step(Step.BASELINE, work)


def compare(stage: Stage, children: Children) -> None:
    """Perplexity of both, and of the best and of random routing."""
    folder, threads = stage.folder, str(available_cores())

    def work() -> str:
        printed = children.run(
            "evaluate",
            [
                *(program("smalltalk"), "evaluate", str(folder.mixture)),
                *("--corpus", str(folder.corpus), "--dense", str(folder.dense)),
                *("--oracle", "--json", "--device", "cpu", "--threads", threads),
            ],
            {"OMP_NUM_THREADS": threads},
        )
        stage.findings.evaluation = json.loads(printed)
        return f"perplexity ratio {stage.findings.evaluation['ratio_suffix']:.3f}"

    stage.step(Step.COMPARE, work)


def generate(stage: Stage, children: Children) -> None:
    """Continue the beginning of a held-out document of each domain."""
    folder = stage.folder

    def work() -> str:
        prompts = heldout_prompts(folder.corpus, stage.config.sequence.prefix)
        if not prompts:
            return "no labels, no samples"
        printed = children.run(
            "generate",
            [
                *(program("smalltalk"), "generate", str(folder.mixture), "--json"),
                *("--tokens", str(SAMPLE_TOKENS), "--temperature", str(SAMPLE_TEMPERATURE)),
                *("--seed", str(stage.options.seed), "--device", "cpu"),
                *(f"--prompt={prompt.text}" for prompt in prompts),
            ],
        )
        said = [json.loads(line) for line in printed.splitlines() if line.strip()]
        stage.findings.samples = [
            {"domain": prompt.domain, **sample}
            for prompt, sample in zip(prompts, said, strict=True)
        ]
        return f"{len(prompts)} domains"

    stage.step(Step.GENERATE, work)


def _processes(stage: Stage) -> int:
    """As many as there are cores and as share the dense model's batch out evenly."""
    batch = stage.config.expert.batch_sequences * stage.config.run.experts
    return max(n for n in range(1, available_cores() + 1) if batch % n == 0)


def _show_progress(stage: Stage, path: Path) -> None:
    try:
        now: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:  # it has not begun
        return
    steps = max(1, now["steps"])
    stage.view.update(
        now["step"] / steps,
        f"step {now['step']} of {steps}, loss {now['loss']:.2f}, "
        f"{now['tokens_per_s']:,.0f} tokens/s",
    )
