"""An expert, seed or dense model trained by several processes of one node, under torchrun.

The parent writes what is to be done into the work folder, starts torch's launcher, relays
progress, and passes on a wish to stop; the children (`python -m smalltalk_fed.train.group`)
call the same functions of `experts` with their part of a `World`. Rules: the result is what
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import WorldError
from smalltalk_fed.train.experts import dense_baseline, train_expert, train_seed
from smalltalk_fed.train.parallel import Strategy, joined_world
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.units import OnProgress, ShouldStop

Kind = Literal["expert", "seed", "dense"]

REQUEST_FILE, SEGMENT_FILE, MANIFEST_FILE = "request.json", "segment.npy", "run.json"
PROGRESS_FILE, RESULT_FILE, STOP_FILE = "progress.json", "result.json", "stop"
LOG_FILE = "group.log"
POLL_S = 0.5
END_S = 30.0


def train_in_group(
    kind: Kind,
    manifest: RunManifest,
    corpus: TokenCorpus,
    work_folder: Path,
    *,
    processes: int,
    strategy: Strategy = "ddp",
    expert: int = 0,
    segment_ids: np.ndarray | None = None,
    seed_parameters: Path | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> tuple[Path, dict[str, float]]:
    """Do what `train_expert`, `train_seed` or `dense_baseline` does with several processes.

    One process a GPU, where there are GPUs. `segment_ids` and `seed_parameters` are an
    expert's.
    Raises Stopped when `should_stop` said so, WorldError when a process failed.
    """
    work_folder.mkdir(parents=True, exist_ok=True)
    for name in (PROGRESS_FILE, RESULT_FILE, STOP_FILE):
        (work_folder / name).unlink(missing_ok=True)
    (work_folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    if segment_ids is not None:
        np.save(work_folder / SEGMENT_FILE, segment_ids, allow_pickle=False)
    request = {
        "kind": kind,
        "corpus": str(corpus.folder.resolve()),
        "expert": expert,
        "seed": str(seed_parameters) if seed_parameters else None,
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
            _watch(group, work_folder, on_progress, should_stop)
        except BaseException:
            _end(group, work_folder)
            raise
    return _result(group.returncode, work_folder)


def _watch(
    group: subprocess.Popen[bytes],
    folder: Path,
    on_progress: OnProgress | None,
    should_stop: ShouldStop | None,
) -> None:
    seen: dict[str, Any] = {}
    while group.poll() is None:
        time.sleep(POLL_S)
        if should_stop is not None and should_stop():
            (folder / STOP_FILE).touch()
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

        common: dict[str, Any] = {
            "device": device or "cpu",
            "on_progress": report,
            "should_stop": lambda: (folder / STOP_FILE).exists() or not _alive(request["parent"]),
            "world": world,
        }
        ways: dict[str, Callable[[], tuple[Path, dict[str, float]]]] = {
            "expert": lambda: train_expert(
                manifest,
                corpus,
                request["expert"],
                np.load(folder / SEGMENT_FILE, allow_pickle=False),
                Path(request["seed"]) if request["seed"] else None,
                folder,
                **common,
            ),
            "seed": lambda: train_seed(manifest, corpus, folder, **common),
            "dense": lambda: dense_baseline(manifest, corpus, folder, **common),
        }
        try:
            weights, figures = ways[request["kind"]]()
            result: dict[str, Any] = {
                "stopped": False,
                "weights": str(weights),
                "figures": figures,
            }
        except Stopped:
            result = {"stopped": True}
        if leads:
            _write(folder / RESULT_FILE, result)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    work(Path(sys.argv[1]))
