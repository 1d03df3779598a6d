"""The machinery of `chaos.py`: real programs, held down, on lines that can stall.

Rules: a node's process and all its threads get a fixed share of a core from the kernel (a
control group), so that the time of a dead or stopped node goes to nobody; a stalled line
holds bytes and loses none (each node dials a proxy of its own).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from process_facts import free_port

from smalltalk_fed.config.manifest import sha256
from smalltalk_fed.worksite.identity import NodeFolder

PERIOD_US = 100_000
V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
LOOK_S = 0.05
START_S = 600.0


def program(module: str, *arguments: object) -> list[str]:
    """A command line of one of the product's programs."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def good(module: str, *arguments: object) -> str:
    """Run one command that must succeed; returns what it printed."""
    done = subprocess.run(
        program(module, *arguments), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} {arguments[0]} failed: {done.stderr}")
    return done.stdout.strip()


class Share:
    """A control group whose processes together get `cores` of a core."""

    def __init__(self, name: str, cores: float) -> None:
        """Raises OSError where control groups can't be written."""
        quota = int(cores * PERIOD_US)
        if (V1 / "cpu.cfs_quota_us").exists():
            self._folder = V1 / name
            self._folder.mkdir()
            (self._folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            with contextlib.suppress(OSError):  # it is on already
                (V2 / "cgroup.subtree_control").write_text("+cpu")
            self._folder = V2 / name
            self._folder.mkdir()
            (self._folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, inside from its first instruction on."""
        enter = f'echo $$ > {self._folder}/cgroup.procs; exec "$@"'
        return ["sh", "-c", enter, "sh", *command]

    def remove(self) -> None:
        """Take the group away; its processes have ended."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Lines:
    """Proxies in a thread, one a node, between the node and the coordinator's port."""

    def __init__(self, count: int, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._open = [asyncio.Event() for _ in range(count)]
        self.ports: list[int] = []
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def stall(self, node: int) -> None:
        """Hold all bytes of this node."""
        self._loop.call_soon_threadsafe(self._open[node].clear)

    def go_on(self, node: int) -> None:
        """Let held bytes pass."""
        self._loop.call_soon_threadsafe(self._open[node].set)

    def close(self) -> None:
        """End the thread and all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        for gate in self._open:
            gate.set()

            async def connected(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                gate: asyncio.Event = gate,
            ) -> None:
                await gate.wait()
                try:
                    far = await asyncio.open_connection("127.0.0.1", self._target)
                except OSError:  # nobody serves now
                    writer.close()
                    return
                ways = ((reader, far[1]), (far[0], writer))
                await asyncio.gather(*(_pump(source, sink, gate) for source, sink in ways))

            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            self.ports.append(server.sockets[0].getsockname()[1])


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            await gate.wait()
            writer.write(data)
            await writer.drain()
    await gate.wait()  # the end of a connection is held, too
    writer.close()


@contextlib.contextmanager
def processes() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Children by name; they are gone at the end."""
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        yield children
    finally:
        for child in children.values():
            child.kill()
        for child in children.values():
            child.wait()


class World:
    """One run: the coordinator, the nodes, their lines and shares."""

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        settings: dict[str, object],
        steps: int,
        children: dict[str, subprocess.Popen[bytes]],
        cores: Sequence[float],
    ) -> None:
        """`cores`: each node's share of a core."""
        self.folder, self.corpus, self.children = folder, corpus, children
        self.run, self.nodes, self.steps = folder / "run", len(cores), steps
        settings = {**settings, "expert.steps": steps}
        ports = [free_port(), free_port()]
        sets = [
            part
            for key, value in settings.items()
            for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        addresses = ("--run-address", f"127.0.0.1:{ports[0]}")
        addresses += ("--enrol-address", f"127.0.0.1:{ports[1]}")
        good("smalltalk_coordinator.cli", "init", self.run, "--corpus", corpus, *addresses, *sets)
        self.lines = Lines(self.nodes, ports[0])
        self.shares = [
            Share(f"smalltalk-{os.getpid()}-{node}", share) for node, share in enumerate(cores)
        ]
        token = good("smalltalk_coordinator.cli", "invite", self.run, "--uses", self.nodes)
        self.serve()
        for node, port in enumerate(self.lines.ports):
            place = folder / str(node)
            self.wait(lambda place=place: self._joined(token, place), "a node to join")
            NodeFolder.open(place).remember(run_address=f"127.0.0.1:{port}")
            self.start(node)

    def _joined(self, token: str, place: Path) -> bool:
        command = program("smalltalk_node.cli", "join", token, "--dir", place, "--name", place.name)
        return not subprocess.run(command, capture_output=True, env=ENVIRONMENT).returncode

    def serve(self) -> None:
        """Start the coordinator."""
        self._spawn("coordinator", program("smalltalk_coordinator.cli", "serve", self.run))

    def start(self, node: int) -> None:
        """Start a node's process."""
        place = ("--dir", self.folder / str(node), "--corpus", self.corpus, "--threads", 1)
        self._spawn(
            str(node), self.shares[node].command(program("smalltalk_node.cli", "run", *place))
        )

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
            )

    def close(self) -> None:
        """End all processes, then what held them."""
        for child in self.children.values():
            child.kill()
            child.wait()
        self.children.clear()
        self.lines.close()
        for share in self.shares:
            share.remove()

    # ---------------------------------------------------------------------------- looking

    def at_work(self, node: int) -> tuple[int, float] | None:
        """The expert that a node's present process trains, and the fraction done."""
        try:
            status = json.loads((self.folder / str(node) / "node-status.json").read_bytes())
        except (OSError, ValueError):
            return None
        kind, _, expert = status["unit"].partition("/")
        if kind != "train_expert" or not status["fraction"]:
            return None
        return (int(expert), status["fraction"]) if status["pid"] == self.pid(node) else None

    def pid(self, node: int) -> int:
        """Of a node's present or last process."""
        return self.children[str(node)].pid

    def checkpointed(self, node: int) -> dict[int, float]:
        """Steps of each expert in a node's newest checkpoint of it."""
        found: dict[int, float] = {}
        for folder in (self.folder / str(node) / "work").glob("*/train_expert-*/*/step-*"):
            expert = int(folder.parent.parent.name.rpartition("-")[2])
            found[expert] = max(found.get(expert, 0.0), int(folder.name.partition("-")[2]))
        return found

    def progress(self) -> float:
        """Steps of all experts that their trainings would go on from now."""
        found: dict[int, float] = {}
        for node in range(self.nodes):
            alive = self.children[str(node)].poll() is None
            work = self.at_work(node) if alive else None
            here = self.checkpointed(node)
            if work is not None:
                here[work[0]] = work[1] * self.steps
            for kept in (self.folder / str(node) / "experts").glob("*/*/model.safetensors"):
                here[int(kept.parent.name)] = self.steps  # finished: its checkpoints are gone
            for expert, done in here.items():
                found[expert] = max(found.get(expert, 0.0), done)
        return sum(found.values())

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = START_S) -> None:
        """Look until it is so."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds:.0f} s in vain for {what}; see {self.folder}")
            time.sleep(LOOK_S)

    def experts(self) -> list[str]:
        """Digests of the finished experts."""
        paths = sorted((self.run / "mixture" / "experts").glob("*/model.safetensors"))
        return [sha256(path.read_bytes()) for path in paths]
