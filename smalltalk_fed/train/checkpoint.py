"""Checkpoints of a training run: all or nothing, checked, and cheap to write.

A checkpoint is a folder `step-<n>` with `state.safetensors` (weights, AdamW's moments, losses
so far, random state) and `state.json` (step, plan's fingerprint, the file's SHA-256, what
writing it cost). Rules:

- it is written beside its place, made durable, and then renamed; the last `keep` stay;
- a run that goes on from one ends with the same bits as one that was never interrupted;
- a damaged one is passed over for the one before, with a warning; one of another plan, order
  or start is never used, and goes when this run's first one is there;
- while training goes on a thread writes a copy, as often as `budget` allows; nothing that
  executes is ever read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smalltalk_fed.errors import WorldError
from smalltalk_fed.train.budget import Budget, Cost
from smalltalk_fed.train.state import TrainState

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHECKPOINTS = "checkpoints"  # folder in a unit's work folder
STATE_FILE = "state.safetensors"
META_FILE = "state.json"


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where checkpoints go and how often.

    `every_s` counts from the end of the last one; `share` of the time is the most that they
    may take. `run` names the run whose checkpoints are meant (empty: the one that plan, order
    and start say); with `only_on`, training must go on from one of them.
    """

    folder: Path
    every_s: float
    share: float = 0.02
    keep: int = 2
    run: str = ""
    only_on: bool = False


class Checkpointer:
    """Writes and finds the checkpoints of one run."""

    def __init__(
        self, policy: CheckpointPolicy, run: str, state: TrainState, writes: bool = True
    ) -> None:
        """`run` is the run's `fingerprint`; only one process of a group `writes`."""
        self._policy, self._run, self._state, self._writes = policy, run, state, writes
        guess = Cost.guess(state.nbytes)
        self._budget = Budget(policy.every_s, policy.share, guess, time.monotonic())
        self._saved_step = -1
        self._thread: threading.Thread | None = None
        self._failure: OSError | SafetensorError | None = None

    def restore(self) -> None:
        """Put the state where the newest good checkpoint is; without one leave it as it is.

        Raises WorldError when there is none, and the policy wants one.
        """
        if self._writes:
            for part in self._policy.folder.glob(".step-*.part"):  # a killed process's
                shutil.rmtree(part, ignore_errors=True)
        for folder, meta in _good(self._policy.folder, self._run):
            self._state.restore(int(meta["step"]), load_file(folder / STATE_FILE))
            self._saved_step = self._state.step
            self._budget.expected = Cost(float(meta["busy_s"]), float(meta["wall_s"]))
            log.info("going on from %s", folder)
            break
        if self._saved_step < 0 and self._policy.only_on:
            raise WorldError(
                f"the checkpoints in {self._policy.folder} can't be read any more; start the "
                "unit again, it will go on from the weights that were collected."
            )

    @property
    def due(self) -> bool:
        """Whether it is time to save again; a failure is due to be told at once."""
        if not self._writes or (self._thread is not None and self._thread.is_alive()):
            return False
        return self._failure is not None or self._budget.due(time.monotonic())

    @property
    def worth_waiting(self) -> bool:
        """Whether the end of training should wait for a last checkpoint."""
        return self._budget.worth_waiting(time.monotonic())

    def save(self, wait: bool = False) -> None:
        """Write the state, in a thread; with `wait`, return when it is durable.

        Raises WorldError when this or an earlier one could not be written.
        """
        began = time.monotonic()
        self.close()
        step = self._state.step
        if step == self._saved_step:
            return
        tensors = self._state.tensors()
        self._saved_step = step
        if self._writes:
            arguments = (tensors, step, began, time.monotonic() - began)
            self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
            self._thread.start()
        if wait:
            self.close()

    def close(self) -> None:
        """Wait for the thread; raise what it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise WorldError(
                f"a checkpoint can't be written to {self._policy.folder}: {failure}; training "
                "stops, since it could not go on after a crash: make room there."
            ) from failure

    def _write(self, tensors: dict[str, Tensor], step: int, began: float, held_s: float) -> None:
        root = self._policy.folder
        place, part = root / f"step-{step:010d}", root / f".step-{step:010d}.part"
        busy_before = time.thread_time()

        def cost() -> Cost:
            busy_s = held_s + time.thread_time() - busy_before
            return Cost(busy_s, time.monotonic() - began)

        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file(tensors, part / STATE_FILE)
            digest = _digest(part / STATE_FILE)
            _sync(part / STATE_FILE)
            so_far = cost()  # nearly all of it: what a resumed run expects
            meta = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "run": self._run,
                "sha256": digest,
                "busy_s": so_far.busy_s,
                "wall_s": so_far.wall_s,
            }
            (part / META_FILE).write_text(json.dumps(meta, sort_keys=True))
            for path in (part / META_FILE, part):
                _sync(path)
            shutil.rmtree(place, ignore_errors=True)
            part.rename(place)
            _sync(root)
            self._prune()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            self._failure = error
        finally:
            self._budget.took(cost(), time.monotonic())

    def _prune(self) -> None:
        """Keep the newest of this run, and nothing of another."""
        kept = 0
        for folder in _newest_first(self._policy.folder):
            ours = (_meta(folder) or {}).get("run") == self._run
            kept += ours
            if not ours or kept > self._policy.keep:
                shutil.rmtree(folder, ignore_errors=True)


def newest_step(folder: Path, run: str) -> int | None:
    """Return the step of the newest good checkpoint of `run`, or None."""
    return next((int(meta["step"]) for _, meta in _good(folder, run)), None)


def _good(root: Path, run: str) -> Any:
    """Yield folder and description of the run's undamaged checkpoints, newest first."""
    for folder in _newest_first(root):
        meta = _meta(folder)
        if meta is not None and (meta["format_version"], meta["run"]) != (FORMAT_VERSION, run):
            log.warning("%s is of another run and is passed over", folder)
        elif meta is not None and _undamaged(folder, meta):
            yield folder, meta


def _meta(folder: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads((folder / META_FILE).read_text())
        known = {"format_version": int, "step": int, "run": str, "sha256": str}
        odd = [name for name, kind in known.items() if not isinstance(meta[name], kind)]
        if odd:
            raise ValueError(f"its {odd[0]} is {meta[odd[0]]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s); the one before is used", folder, error)
        return None
    return {"busy_s": 0.0, "wall_s": 0.0} | meta


def _undamaged(folder: Path, meta: dict[str, Any]) -> bool:
    try:
        if _digest(folder / STATE_FILE) != meta["sha256"]:
            raise ValueError("its digest differs")
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s); the one before is used", folder, error)
        return False
    return True


def _newest_first(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
