"""Weights part-way: at every multiple of N steps a file, for whoever collects them.

Rules: training is held up for a copy, a thread writes; the file is whole when it has its
name. It belongs to the collector, who removes it when it has gone out: while one lies there
no other is written, so that a slow network costs steps of safety and never training time.
A file that can't be written is left out, and said; the checkpoints are what matters here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from smalltalk_fed.errors import WorldError
from smalltalk_fed.model.state import copied_weights, weights_to_file
from smalltalk_fed.train.parallel import World

log = logging.getLogger(__name__)

OnState = Callable[[int, Path], None]  # step, and the weights' file; called by another thread


@dataclass(frozen=True)
class HandOutPolicy:
    """Every how many steps, where to, who is told, and up to which step it is known already."""

    every_steps: int
    folder: Path
    on_state: OnState | None = None
    known_step: int = 0


class StateWriter:
    """Writes the files of one training run."""

    def __init__(self, policy: HandOutPolicy, steps: int, world: World) -> None:
        """`steps` is the run's last step, at which the finished weights follow anyway."""
        self._policy, self._steps, self._world = policy, steps, world
        self._thread: threading.Thread | None = None
        if world.rank == 0:
            for _, path in states_in(policy.folder):  # of a process that was killed
                path.unlink(missing_ok=True)

    def due(self, step: int) -> bool:
        """Whether the weights after `step` are to be handed out; processes say the same."""
        if step % self._policy.every_steps or not self._policy.known_step < step < self._steps:
            return False
        return self._world.lead(self._free)

    def save(self, model: nn.Module, step: int) -> None:
        """Copy the weights; the file follows."""
        weights = copied_weights(model)
        if self._world.rank == 0:
            self._thread = threading.Thread(target=self._write, args=(weights, step), name="state")
            self._thread.start()

    def close(self) -> None:
        """Wait for the file that is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def _free(self) -> bool:
        writing = self._thread is not None and self._thread.is_alive()
        return not writing and not states_in(self._policy.folder)

    def _write(self, weights: dict[str, Tensor], step: int) -> None:
        path = self._policy.folder / f"state-{step:010d}.safetensors"
        try:
            weights_to_file(weights, path, durable=False)
        except WorldError as error:
            log.warning("the weights of step %d are not handed out: %s", step, error)
            return
        if self._policy.on_state is not None:
            self._policy.on_state(step, path)


def states_in(folder: Path) -> list[tuple[int, Path]]:
    """Return step and file of what lies there to be collected, oldest first."""
    found = sorted(folder.glob("state-*.safetensors"))
    return [(int(path.stem.removeprefix("state-")), path) for path in found]
