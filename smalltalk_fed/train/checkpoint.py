"""Checkpoints of a training run: all or nothing, checked, and cheap to write.

A checkpoint is a folder `step-<n>` with `state.safetensors` (weights, AdamW's moments, losses
so far, random state) and `state.json` (step, plan's fingerprint, the file's SHA-256). Rules:

- it is written beside its place, made durable, and then renamed; the last `keep` stay;
- a run that goes on from one ends with the same bits as one that was never interrupted;
- a damaged one is passed over for the one before, with a warning; one of another plan, order
  or start is never used;
- while training goes on a thread writes a copy; nothing that executes is ever read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smalltalk_fed.errors import WorldError
from smalltalk_fed.train.parallel import World
from smalltalk_fed.train.plan import TrainPlan

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
STATE_FILE = "state.safetensors"
META_FILE = "state.json"


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where checkpoints go and how often; `every_s` counts from the end of the last one."""

    folder: Path
    every_s: float
    keep: int = 2


class TrainState:
    """All that a training run changes: weights, moments, losses, step, random state."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.AdamW, losses_T: Tensor, world: World
    ) -> None:
        self.model, self.optimizer, self.losses_T = model, optimizer, losses_T
        self.world = world
        self.step = 0
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of everything, by name."""
        found = {"losses": _copy(self.losses_T[: self.step])}
        for name, weight in self.model.named_parameters():
            found[f"weight/{name}"] = _copy(self.world.whole(weight.detach()))
            for key, value in self.optimizer.state.get(weight, {}).items():
                found[f"{key}/{name}"] = _copy(self.world.whole(value))
        found["random/cpu"] = torch.get_rng_state()
        if self.losses_T.device.type == "cuda":
            found["random/cuda"] = torch.cuda.get_rng_state(self.losses_T.device)
        return found

    @torch.no_grad()
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self.step = step
        self.losses_T[:step] = tensors["losses"].to(self.losses_T.device)
        # Sorted: putting a part is talk between processes, who must all say the same.
        keys = sorted({key.partition("/")[0] for key in tensors} - {"losses", "weight", "random"})
        for name, weight in self.model.named_parameters():
            self.world.put(weight, tensors[f"weight/{name}"])
            if not weight.requires_grad:
                continue
            moments = {}
            for key in keys:
                value = tensors[f"{key}/{name}"]
                if value.ndim:
                    moment = torch.empty_like(weight)
                    self.world.put(moment, value)
                else:  # AdamW's own step count, on the device only where it is fused there
                    moment = value.to(weight.device if weight.device.type == "cuda" else "cpu")
                moments[key] = moment
            if moments:
                self.optimizer.state[weight] = moments
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self.losses_T.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.losses_T.device)


def fingerprint(plan: TrainPlan, order: np.ndarray, model: nn.Module) -> str:
    """Return the identity of a run: its plan, its order, and the weights it starts from."""
    digest = hashlib.sha256(json.dumps(_plain(plan), sort_keys=True).encode())
    digest.update(np.ascontiguousarray(order, dtype="<i8").tobytes())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Checkpointer:
    """Writes and finds the checkpoints of one run."""

    def __init__(self, policy: CheckpointPolicy, run: str, writes: bool = True) -> None:
        """`run` is the run's `fingerprint`; only one process of a group `writes`."""
        self._policy, self._run, self._writes = policy, run, writes
        self._last = time.monotonic()
        self._saved_step = -1
        self._thread: threading.Thread | None = None
        self._failure: OSError | SafetensorError | None = None

    def restore(self, state: TrainState) -> None:
        """Put `state` where the newest good checkpoint is; without one leave it as it is."""
        for folder in _newest_first(self._policy.folder):
            found = _read(folder, self._run)
            if found is not None:
                state.restore(*found)
                self._saved_step = state.step
                log.info("going on from %s", folder)
                return

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        busy = self._thread is not None and self._thread.is_alive()
        return not busy and time.monotonic() - self._last >= self._policy.every_s

    def save(self, state: TrainState, wait: bool = False) -> None:
        """Write `state`, in a thread; with `wait`, return when it is durable.

        Raises WorldError when this or an earlier one could not be written.
        """
        self.close()
        if state.step == self._saved_step:
            return
        tensors = state.tensors()
        self._saved_step = state.step
        if self._writes:
            arguments = (tensors, state.step)
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
                "stops, since it could not go on after a crash."
            ) from failure

    def _write(self, tensors: dict[str, Tensor], step: int) -> None:
        root = self._policy.folder
        place, part = root / f"step-{step:010d}", root / f".step-{step:010d}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file(tensors, part / STATE_FILE)
            meta = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "run": self._run,
                "sha256": _digest(part / STATE_FILE),
            }
            (part / META_FILE).write_text(json.dumps(meta, sort_keys=True))
            for path in (part / STATE_FILE, part / META_FILE, part):
                _sync(path)
            shutil.rmtree(place, ignore_errors=True)
            part.rename(place)
            _sync(root)
            for old in _newest_first(root)[self._policy.keep :]:
                shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            self._failure = error
        finally:
            self._last = time.monotonic()


def _read(folder: Path, run: str) -> tuple[int, dict[str, Tensor]] | None:
    try:
        meta = json.loads((folder / META_FILE).read_text())
        if meta["format_version"] != FORMAT_VERSION or meta["run"] != run:
            log.warning("%s is of another run and is passed over", folder)
            return None
        if _digest(folder / STATE_FILE) != meta["sha256"]:
            raise ValueError("its digest differs")
        return int(meta["step"]), load_file(folder / STATE_FILE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("%s is damaged (%s); the one before is used", folder, error)
        return None


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


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _plain(plan: TrainPlan) -> dict[str, Any]:
    return asdict(plan) | {"optimizer": plan.optimizer.model_dump(mode="json")}
