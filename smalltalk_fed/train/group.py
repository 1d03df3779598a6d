"""An expert, seed or dense model trained by several processes of one node, under torchrun.

The parent writes what is to be done into the work folder, starts torch's launcher, relays
progress, and passes on a wish to stop; the children (`python -m smalltalk_fed.train.group`)
do the same `TrainInputs.train` with their part of a `World`. Rules: the result is what
one process would give, up to the order of sums; checkpoints are interchangeable with one
process's; between the processes go torch's own messages and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import WorldError
from smalltalk_fed.train.device import choose_device
from smalltalk_fed.train.handing_out import OnState, states_in
from smalltalk_fed.train.inputs import Kind, TrainInputs
from smalltalk_fed.train.lineage import Start
from smalltalk_fed.train.parallel import Strategy, joined_world
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.units import OnProgress, ShouldStop

# Weights, gradients and AdamW's two moments, in fp32, that every process holds under DDP.
STATE_BYTES_PER_PARAMETER = 16

REQUEST_FILE, SEGMENT_FILE, MANIFEST_FILE = "request.json", "segment.npy", "run.json"
PROGRESS_FILE, RESULT_FILE, STOP_FILE = "progress.json", "result.json", "stop"
LOG_FILE = "group.log"
POLL_S = 0.5
END_S = 30.0


def train_on_node(
    inputs: TrainInputs,
    *,
    device: str = "auto",
    on_progress: OnProgress | None = None,
    on_state: OnState | None = None,
    should_stop: ShouldStop | None = None,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train on all that this node has: `device` "auto" or "cuda" means every GPU.

    With one GPU, none, or a device that is named with its number, in this process.
    Raises as `train_in_group` does.
    """
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 1
    processes = processes_for(inputs.kind, inputs.manifest, count)
    if processes > 1:
        memory = torch.cuda.get_device_properties(0).total_memory
        return train_in_group(
            inputs,
            processes=processes,
            strategy=strategy_for(inputs.manifest, memory),
            on_progress=on_progress,
            on_state=on_state,
            should_stop=should_stop,
            metrics_folder=metrics_folder,
        )
    return inputs.train(
        device=choose_device(device),
        on_progress=on_progress,
        on_state=on_state,
        should_stop=should_stop,
        metrics_folder=metrics_folder,
    )


def processes_for(kind: Kind, manifest: RunManifest, gpus: int) -> int:
    """Return the most processes, one a GPU, that a batch can be shared out to evenly."""
    batch = manifest.config.expert.batch_sequences
    if kind == "dense":
        batch *= manifest.experts
    return next((count for count in range(gpus, 1, -1) if batch % count == 0), 1)


def strategy_for(manifest: RunManifest, gpu_bytes: int) -> Strategy:
    """Return DDP where the whole state takes at most half of a GPU, else FSDP2."""
    shape = manifest.config.expert.model
    state_bytes = STATE_BYTES_PER_PARAMETER * shape.parameters(manifest.vocabulary)
    return "ddp" if 2 * state_bytes <= gpu_bytes else "fsdp"


def train_in_group(
    inputs: TrainInputs,
    *,
    processes: int,
    strategy: Strategy = "ddp",
    on_progress: OnProgress | None = None,
    on_state: OnState | None = None,
    should_stop: ShouldStop | None = None,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Do what `inputs.train` does with several processes, one a GPU where there are GPUs.

    Raises Stopped when `should_stop` said so, WorldError when a process failed.
    """
    work_folder = inputs.work_folder
    work_folder.mkdir(parents=True, exist_ok=True)
    for name in (PROGRESS_FILE, RESULT_FILE, STOP_FILE):
        (work_folder / name).unlink(missing_ok=True)
    (work_folder / MANIFEST_FILE).write_bytes(inputs.manifest.to_bytes())
    if inputs.segment_ids is not None:
        np.save(work_folder / SEGMENT_FILE, inputs.segment_ids, allow_pickle=False)
    request = {
        "kind": inputs.kind,
        "corpus": str(inputs.corpus.folder.resolve()),
        "expert": inputs.expert,
        "seed": _name(inputs.seed_parameters),
        "start": asdict(inputs.start),
        "state": _name(inputs.state),
        "metrics": _name(metrics_folder),
        "strategy": strategy,
        "parent": os.getpid(),
    }
    (work_folder / REQUEST_FILE).write_text(json.dumps(request))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", "smalltalk_fed.train.group"),
        str(work_folder.resolve()),
    ]
    with (work_folder / LOG_FILE).open("ab") as log:
        # In a session of its own, so that Ctrl-C comes to it through us, and in good order.
        group = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _watch(group, work_folder, on_progress, on_state, should_stop)
        except BaseException:
            _end(group, work_folder)
            raise
    return _result(group.returncode, work_folder)


def _watch(
    group: subprocess.Popen[bytes],
    folder: Path,
    on_progress: OnProgress | None,
    on_state: OnState | None,
    should_stop: ShouldStop | None,
) -> None:
    seen: dict[str, Any] = {}
    handed_out = 0  # step
    while group.poll() is None:
        time.sleep(POLL_S)
        if should_stop is not None and should_stop():
            (folder / STOP_FILE).touch()
        for step, path in states_in(folder):
            if on_state is not None and step > handed_out:
                handed_out = step
                on_state(step, path)
        told = _read(folder / PROGRESS_FILE)
        if on_progress is not None and told and told != seen:
            seen = told
            on_progress(told["fraction"], told["figures"])


def _end(group: subprocess.Popen[bytes], folder: Path) -> None:
    """Let the group end its step and write its checkpoint; if it does not, end it."""
    (folder / STOP_FILE).touch()
    try:
        group.wait(END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        group.terminate()
        group.wait()


def _result(code: int, folder: Path) -> tuple[Path, dict[str, float]]:
    result = _read(folder / RESULT_FILE)
    if result is None or (code and not result.get("stopped")):
        lines = (folder / LOG_FILE).read_text(errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if "Error" in line), "it left no reason")
        raise WorldError(
            f"a process of the group that trains in {folder} ended with code {code}: "
            f"{last.strip()[:200]} (see {LOG_FILE} there)."
        )
    if result["stopped"]:
        raise Stopped
    return Path(result["weights"]), result["figures"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def _write(path: Path, table: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(table))
    part.replace(path)


def _name(path: Path | None) -> str | None:
    return str(path.resolve()) if path else None


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def work(folder: Path) -> None:
    """Be one process of the group; `folder` is the parent's work folder."""
    request = json.loads((folder / REQUEST_FILE).read_text())
    manifest = RunManifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
    corpus = TokenCorpus.open(Path(request["corpus"]))
    with joined_world(request["strategy"]) as (world, device):
        leads = world.rank == 0

        def report(fraction: float, figures: dict[str, float]) -> None:
            if leads:
                _write(folder / PROGRESS_FILE, {"fraction": fraction, "figures": figures})

        segment = folder / SEGMENT_FILE
        inputs = TrainInputs(
            request["kind"],
            manifest,
            corpus,
            folder,
            request["expert"],
            np.load(segment, allow_pickle=False) if segment.exists() else None,
            _path(request["seed"]),
            Start(**request["start"]),
            _path(request["state"]),
        )
        result: dict[str, Any]
        try:
            weights, figures = inputs.train(
                device=device or "cpu",
                on_progress=report,
                should_stop=lambda: (folder / STOP_FILE).exists() or not _alive(request["parent"]),
                world=world,
                metrics_folder=_path(request["metrics"]),
            )
            result = {"stopped": False, "weights": str(weights), "figures": figures}
        except Stopped:
            result = {"stopped": True}
        if leads:
            _write(folder / RESULT_FILE, result)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    work(Path(sys.argv[1]))
