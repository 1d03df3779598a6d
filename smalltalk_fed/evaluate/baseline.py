"""The dense model that a mixture is compared with (arXiv 2410.03529, section 3.1).

Rules: the experts' shape and number of steps, a batch E times larger, so as many tokens in
all; the same corpus, optimizer and schedule. What trains is `train.experts.dense_baseline`;
here it becomes a Hugging Face model folder with `baseline.json` beside the weights.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from smalltalk_fed.config.manifest import make_manifest
from smalltalk_fed.config.model_config import model_config
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import UserError, WorldError
from smalltalk_fed.train.experts import WEIGHTS_FILE, dense_baseline
from smalltalk_fed.train.group import train_in_group
from smalltalk_fed.train.inputs import TrainInputs

BASELINE_FILE = "baseline.json"
WORK_FOLDER = "unfinished"

OnProgress = Callable[[float, dict[str, float]], None]


def train_baseline(
    config: RunConfig,
    corpus_folder: Path,
    out: Path,
    *,
    threads: int | None = None,
    device: str = "cpu",
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train the dense model into the folder `out`; returns what baseline.json holds.

    An interrupted one leaves its checkpoints in `out`, and goes on from there. Several
    `processes`, with `threads` each, share out every batch: on a CPU small
    products divide badly among threads.

    Raises:
        UserError: `out` holds something else, or processes can't share a batch out evenly.
        ConfigError, DataError: configuration and corpus don't fit.
        WorldError: the disk refuses.
    """
    work = out / WORK_FOLDER
    if out.exists() and any(out.iterdir()) and not work.is_dir():
        raise UserError(f"{out} is not empty; give a new folder with --out.")
    if threads is not None:
        compute = config.compute.model_copy(update={"threads": threads})
        config = config.model_copy(update={"compute": compute})
    corpus = TokenCorpus.open(corpus_folder)
    manifest = make_manifest(config, corpus.manifest, "baseline", int(time.time()))
    batch = config.expert.batch_sequences * config.run.experts
    if batch % processes:
        raise UserError(
            f"a batch of {batch} sequences can't be shared out evenly to {processes} processes; "
            "give a number of processes that divides it."
        )
    work.mkdir(parents=True, exist_ok=True)
    if processes > 1:
        inputs = TrainInputs("dense", manifest, corpus, work)
        weights, figures = train_in_group(inputs, processes=processes, on_progress=on_progress)
    else:
        weights, figures = dense_baseline(
            manifest, corpus, work, device=device, on_progress=on_progress
        )
    result = {
        "tokens": int(figures["tokens"]),
        "steps": int(figures["steps"]),
        "batch_sequences": batch,
        "processes": processes,
        "parameters": _parameters(weights),
        "seconds": figures["seconds"],
        "tokens_per_s": figures["tokens_per_s"],
        "loss": figures["loss_last"],
        "curve": curve_of(figures),
        "seed": config.run.seed,
        "corpus_digest": corpus.digest,
        "tokenizer_sha256": corpus.manifest.tokenizer_sha256,
    }
    try:
        _write_folder(config, manifest.vocabulary, corpus, out, weights, result)
    except OSError as error:
        raise WorldError(f"{out} can't be written ({error.strerror}).") from None
    return result


def curve_of(figures: dict[str, float]) -> list[tuple[int, float]]:
    """(step, mean loss up to it) out of the figures `loss_at_<step>` of a training unit."""
    prefix = "loss_at_"
    return sorted(
        (int(name.removeprefix(prefix)), loss)
        for name, loss in figures.items()
        if name.startswith(prefix)
    )


def _parameters(weights: Path) -> int:
    with safe_open(weights, framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _write_folder(
    config: RunConfig,
    vocabulary: int,
    corpus: TokenCorpus,
    out: Path,
    weights: Path,
    result: dict[str, Any],
) -> None:
    """A folder that AutoModelForCausalLM.from_pretrained loads, tokenizer included."""
    pretrained = Path(config.expert.init) / "config.json"
    if config.expert.init in ("fresh", "seed"):
        content = model_config(config.expert.model, vocabulary, config.sequence.length)
        (out / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    else:
        shutil.copyfile(pretrained, out / "config.json")
    for file in corpus.tokenizer_folder.iterdir():
        shutil.copyfile(file, out / file.name)
    weights.replace(out / WEIGHTS_FILE)
    (out / BASELINE_FILE).write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(out / WORK_FOLDER)
