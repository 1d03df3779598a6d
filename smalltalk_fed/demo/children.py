"""Child processes of the demonstration: started, watched, and ended whatever happens.

Rules: a program is the one installed beside this Python, never another of that name; each
child leads a process group of its own, so that Ctrl-C comes to the parent alone; ending a child
ends its helpers too, those that have left its group as well; standard error (and output, where
it is not wanted) goes to a log file. A child that fails is reported with the last lines of its
log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from smalltalk_fed.demo.process_tree import helpers_of, kill_left
from smalltalk_fed.errors import WorldError

TAIL_LINES = 15
END_S = 10.0

# Four trainers on two cores spin against each other without these.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def program(name: str) -> str:
    """Path of one of the product's programs, beside this Python.

    Raises:
        WorldError: it is not installed there.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise WorldError(
            f"the program {name} is not installed beside {sys.executable}; install smalltalk-fed "
            "with `pip install 'smalltalk-fed[all]'` in this environment."
        )
    return str(path)


@dataclass
class Child:
    """A running program."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises WorldError if it has ended with an error."""
        code = self.process.poll()
        if code:
            raise WorldError(f"{self.name} ended with {_how(code)}.{tail(self.log)}")

    @property
    def ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self.process.poll() is not None


class Children:
    """All child processes; leaving the `with` block ends those that still run."""

    def __init__(self, logs: Path, environment: dict[str, str] | None = None) -> None:
        self._logs = logs
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.end_all()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        pipe: bool = False,
    ) -> Child:
        """Start a program that stays; all that it says goes to `logs/<name>.log`.

        With `pipe`, its standard output is for the caller to read instead.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            stdout = subprocess.PIPE if pipe else file
            child = Child(name, self._spawn(command, file, environment, stdout=stdout), log)
        self._running.append(child)
        return child

    def run(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        watch: Sequence[Child] = (),
        limit_s: float = 600.0,
    ) -> str:
        """Run a program to its end and return what it printed.

        Its standard error goes to `logs/<name>.log`.

        Raises:
            WorldError: it failed, or took longer than `limit_s`, or one of `watch` died.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            process = self._spawn(command, file, environment, stdout=subprocess.PIPE)
        child = Child(name, process, log)
        self._running.append(child)
        try:
            end = time.monotonic() + limit_s
            while True:
                try:
                    output, _ = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    for other in watch:
                        other.check()
                    if time.monotonic() > end:
                        raise WorldError(
                            f"{name} did not end within {limit_s:.0f} s.{tail(log)}"
                        ) from None
        finally:
            _end([child])
            self._running.remove(child)
        child.check()
        return output.decode("utf-8", "replace")

    def check(self) -> None:
        """Raises WorldError if any child has ended with an error."""
        for child in self._running:
            child.check()

    def end(self, child: Child) -> None:
        """Ask one child to stop, and make it if it does not."""
        _end([child])
        if child in self._running:
            self._running.remove(child)

    def end_all(self) -> None:
        """The same for all, the youngest first: nodes before their coordinator."""
        _end(list(reversed(self._running)))
        self._running.clear()

    def _spawn(
        self,
        command: Sequence[str],
        log: IO[bytes],
        environment: dict[str, str] | None,
        stdout: IO[bytes] | int,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=log,
            env={**self._environment, **(environment or {})},
            start_new_session=True,
        )


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, as an addition to a sentence."""
    try:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        said = []
    if not said:
        return f" Its log {log} is empty."
    return f" The end of {log}:\n" + "\n".join(f"  | {line[:300]}" for line in said[-lines:])


def _end(children: Sequence[Child]) -> None:
    """Ask, insist, force; an impatient second Ctrl-C forces at once."""
    helpers = helpers_of(child.process.pid for child in children if not child.ended)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            left = [child for child in children if not child.ended]
            for child in left:  # the leader alone: it knows how to end its helpers
                child.process.send_signal(number)
            end = time.monotonic() + END_S / 2
            for child in left:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout=max(0.05, end - time.monotonic()))
    finally:
        _force(children)
        kill_left(helpers | helpers_of(helpers))


def _force(children: Sequence[Child]) -> None:
    """Kill what is left of each child's group, and close our end of its pipe."""
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        if child.process.stdout is not None:
            child.process.stdout.close()


def _how(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
