"""The machinery of `chaos.py`: held-down processes, lines that stall, a schedule of faults.

Rules: a node's process and all its threads get a fixed share of a core from the kernel (a
control group), so that the time of a dead or stopped node goes to nobody; a stalled line
holds bytes and loses none (each node dials a proxy of its own); the schedule is a function
of the seed alone, and what was done is written down with its times.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD_US = 100_000
V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")

# Published: 62 faults in 30 minutes over 32 nodes.
FAULTS_A_NODE_MINUTE = 62 / (30 * 32)
# How often each kind comes, and how many seconds it lasts. A killed program is started again
# after that time, as a service manager would.
KINDS: dict[str, tuple[int, tuple[float, float]]] = {
    "kill": (7, (5.0, 15.0)),
    "stop": (4, (5.0, 45.0)),
    "stall": (3, (10.0, 60.0)),
    "kill coordinator": (2, (3.0, 10.0)),
}
BETWEEN_S = 5.0  # a machine has so long between two faults


@dataclass(frozen=True)
class Fault:
    """One entry of the schedule; times in seconds from the start of the measurement."""

    at_s: float
    lasts_s: float
    kind: str
    node: int  # -1: the coordinator


def make_schedule(
    seed: int, nodes: int, seconds: float, count: int | None = None
) -> tuple[Fault, ...]:
    """`count` faults, or as many as the published density asks for; they end in time."""
    draw = random.Random(f"chaos {seed}")
    if count is None:
        count = round(FAULTS_A_NODE_MINUTE * nodes * seconds / 60)
    kinds = [kind for kind, (weight, _) in KINDS.items() for _ in range(weight)]
    faults: list[Fault] = []
    for number in range(count):
        kind = kinds[draw.randrange(len(kinds))]
        lasts_s = draw.uniform(*KINDS[kind][1])
        # One in each slice of the time, so that no seed bunches them.
        at_s = (number + draw.random()) * seconds / count
        at_s = max(0.0, min(at_s, seconds - lasts_s - BETWEEN_S))
        free = [node for node in range(nodes) if not _busy(faults, node, at_s, lasts_s)]
        node = -1 if kind == "kill coordinator" else draw.choice(free)
        if node >= 0 or not _busy(faults, node, at_s, lasts_s):
            faults.append(Fault(round(at_s, 2), round(lasts_s, 2), kind, node))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _busy(faults: Sequence[Fault], node: int, at_s: float, lasts_s: float) -> bool:
    return any(
        fault.node == node
        and at_s < fault.at_s + fault.lasts_s + BETWEEN_S
        and fault.at_s < at_s + lasts_s + BETWEEN_S
        for fault in faults
    )


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
