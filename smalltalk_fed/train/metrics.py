"""Figures of a training run over time, for people: JSON lines always, TensorBoard if installed.

Rules: a line is written as soon as it is known and is whole; a run that goes on appends. A
disk that refuses ends no training: the figures are left out from there on, which is said once.
What travels to the coordinator is not decided here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` in a folder, and TensorBoard's events beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIO | None = None
        self._board: Any = None
        with self._leaving_out():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
            self._board = _tensorboard(folder)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of one step."""
        line = {"step": step, "unix_s": round(time.time(), 3), **figures}
        with self._leaving_out():
            if self._file is not None:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            if self._board is not None:
                for name, value in figures.items():
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close what is open."""
        with self._leaving_out():
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning(
                "figures over time can't be written to %s any more: %s", self._folder, error
            )
            file, self._file, self._board = self._file, None, None
            if file is not None:
                with suppress(OSError):
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a folder's `metrics.jsonl`; one that a crash cut off is left out."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
