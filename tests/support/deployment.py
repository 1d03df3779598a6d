"""A real deployment on loopback: the programs as processes, driven through their command lines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from smalltalk_coordinator.operator_client import NotServing, OperatorClient

from smalltalk_fed.host.folder import RunFolder

BIN = Path(sys.executable).parent
WAIT_S = 120.0
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "NO_COLOR": "1"}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(
    program: str, *arguments: object, within: Sequence[str] = (), wait_s: float = WAIT_S
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; `within` goes in front of it."""
    return subprocess.run(
        [*within, str(BIN / program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENV,
        timeout=wait_s,
        check=False,
    )


def good(program: str, *arguments: object, within: Sequence[str] = ()) -> str:
    """Run one command that must succeed; returns what it printed."""
    done = command(program, *arguments, within=within)
    assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
    return done.stdout.strip()


def wait_for(
    condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S, every_s: float = 0.05
) -> Any:
    """Ask `condition` until it says yes."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every_s)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")


@dataclass
class Deployment:
    """One run folder, one coordinator, some nodes."""

    folder: Path
    corpus: Path
    settings: dict[str, object]
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    host: str = "127.0.0.1"
    # What goes in front of the commands at the coordinator's and at the nodes' place.
    at_coordinator: Sequence[str] = ()
    at_nodes: Sequence[str] = ()

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def init(self, run_port: int = 0, enrol_port: int = 0) -> None:
        """`smalltalk-coordinator init`."""
        self.run_port, self.enrol_port = run_port or free_port(), enrol_port or free_port()
        good(
            "smalltalk-coordinator", "init", self.run, "--corpus", self.corpus,
            "--run-address", f"{self.host}:{self.run_port}",
            "--enrol-address", f"{self.host}:{self.enrol_port}", *self.sets(),
        )  # fmt: skip

    def sets(self) -> list[str]:
        """The settings as `--set` options."""
        pairs = [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]
        return [part for pair in pairs for part in ("--set", pair)]

    def serve(self) -> None:
        """`smalltalk-coordinator serve`, and wait until it answers."""
        self.start("coordinator", "smalltalk-coordinator", "serve", self.run)
        wait_for(lambda: self.glance().get("serving"), "the coordinator to serve")

    def status(self) -> dict[str, Any]:
        """`smalltalk-coordinator status --json`."""
        status: dict[str, Any] = json.loads(
            good("smalltalk-coordinator", "status", self.run, "--json", within=self.at_coordinator)
        )
        return status

    def glance(self) -> dict[str, Any]:
        """The status, asked for as `status` does, but by this process where it can.

        A command is a second of CPU, too much to wait with. In a network namespace, or while the
        coordinator does not answer, it is the command.
        """
        coordinator = self.children.get("coordinator")
        if self.at_coordinator or coordinator is None or coordinator.poll() is not None:
            return self.status()
        try:
            with OperatorClient(RunFolder.open(self.run)) as client:
                return {**client.status(), "serving": True}
        except NotServing:
            return self.status()

    def join(self, name: str) -> None:
        """`invite` and `smalltalk-node join`."""
        token = good("smalltalk-coordinator", "invite", self.run, within=self.at_coordinator)
        place = ("--dir", self.folder / name, "--name", name)
        good("smalltalk-node", "join", token, *place, within=self.at_nodes)

    def node(self, name: str) -> None:
        """`smalltalk-node run` in the background."""
        arguments = ("--dir", self.folder / name, "--corpus", self.corpus, "--threads", 1)
        self.start(name, "smalltalk-node", "run", *arguments)

    def start(self, name: str, program: str, *arguments: object) -> None:
        """Start a child; its output goes to NAME.log."""
        within = self.at_coordinator if name == "coordinator" else self.at_nodes
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [*within, str(BIN / program), *map(str, arguments)],
                stdout=log,
                stderr=log,
                env=ENV,
                start_new_session=True,
            )

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        child = self.children.pop(name)
        child.send_signal(number)
        return child.wait(WAIT_S)

    def log(self, name: str) -> str:
        """What a child has said."""
        return (self.folder / f"{name}.log").read_text()

    def wait_phase(self, *phases: str) -> dict[str, Any]:
        """Wait until the run is in one of these phases; a child that dies early is an error."""

        def look() -> dict[str, Any] | None:
            for name, child in self.children.items():
                code = child.poll()
                assert not code, f"{name} ended with {code}:\n{self.log(name)[-3000:]}"
            status = self.glance()
            assert status["phase"] != "failed" or "failed" in phases, status["reason"]
            return status if status["phase"] in phases else None

        found: dict[str, Any] = wait_for(look, f"phase {phases}", every_s=0.2)
        return found


Made = TypeVar("Made", bound=Deployment)


@contextlib.contextmanager
def deployment(folder: Path, corpus: Path, settings: dict[str, object]) -> Iterator[Deployment]:
    """A deployment whose children are gone at the end."""
    with ending(Deployment(folder, corpus, settings)) as made:
        yield made


@contextlib.contextmanager
def ending(made: Made) -> Iterator[Made]:
    """End the children of a deployment, however it went."""
    try:
        yield made
    finally:
        for child in made.children.values():
            child.kill()
        for child in made.children.values():
            child.wait()


SMALL_RUN: dict[str, object] = {
    "run.experts": 2,
    "run.lease_s": 4.0,
    "run.poll_s": 2.0,
    "sequence.length": 64,
    "sequence.prefix": 16,
    "router.model": "router-mini",
    "router.rounds": 3,
    "router.chunk_sequences": 64,
    "router.batch_sequences": 8,
    "router.optimizer.learning_rate": 4e-3,
    "expert.model.hidden": 16,
    "expert.model.layers": 1,
    "expert.model.heads": 2,
    "expert.model.feed_forward": 32,
    "expert.steps": 6,
    "expert.batch_sequences": 4,
    "expert.optimizer.learning_rate": 4e-3,
    "expert.optimizer.warmup_steps": 2,
    "compute.threads": 1,
}
