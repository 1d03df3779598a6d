"""Faults for `chaos.py`: a seeded schedule, and what carries it out.

Rules: the schedule is a function of the seed alone; what was really done, and when, is
written down. A program that ends by itself, and not well, is started again and counted.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from chaos_world import World

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
        there = range(nodes) if kind != "kill coordinator" else (-1,)
        free = [node for node in there if not _busy(faults, node, at_s, lasts_s)]
        if free:
            faults.append(Fault(round(at_s, 2), round(lasts_s, 2), kind, draw.choice(free)))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _busy(faults: Sequence[Fault], node: int, at_s: float, lasts_s: float) -> bool:
    return any(
        fault.node == node
        and at_s < fault.at_s + fault.lasts_s + BETWEEN_S
        and fault.at_s < at_s + lasts_s + BETWEEN_S
        for fault in faults
    )


@dataclass
class Measured:
    """What one run brought, and what was done to it."""

    steps: float = 0.0  # of all experts together, in the measured time
    seconds: float = 0.0
    done: list[dict[str, float | str]] = field(default_factory=list)
    away_s: float = 0.0  # node-seconds dead or stopped
    starting_s: float = 0.0  # node-seconds from a process's start to its first step
    repeated_steps: float = 0.0  # done after the last checkpoint of a process that was killed
    unplanned_exits: int = 0
    lost_units: int = 0
    experts: list[str] = field(default_factory=list)  # digests


class Executor:
    """Does to a world what the schedule says, and writes it down."""

    def __init__(self, world: World, schedule: tuple[Fault, ...], measured: Measured) -> None:
        self._world, self._measured = world, measured
        self._began = time.monotonic()
        self._due = sorted(
            [(fault.at_s, True, fault) for fault in schedule]
            + [(fault.at_s + fault.lasts_s, False, fault) for fault in schedule],
            key=lambda entry: entry[:2],
        )
        self._dead: set[str] = set()
        self._since: dict[Fault, float] = {}
        self._starting: dict[int, float] = {}

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def starting_now_s(self) -> float:
        """Node-seconds of the starts that are under way."""
        return sum(self.now_s - began_s for began_s in self._starting.values())

    def look(self) -> None:
        """Do what is due; start again what ended by itself; see who has begun to train."""
        while self._due and self._due[0][0] <= self.now_s:
            _, begins, fault = self._due.pop(0)
            (self._begin if begins else self._end)(fault)
        for node in [n for n in self._starting if self._world.at_work(n)]:
            self._started(node)
        for name, child in self._world.children.items():
            if name not in self._dead and child.poll():
                self._measured.unplanned_exits += 1
                self._restart(name)

    def _begin(self, fault: Fault) -> None:
        world, name = self._world, "coordinator" if fault.node < 0 else str(fault.node)
        self._since[fault] = self.now_s
        if fault.kind == "stall":
            world.lines.stall(fault.node)
        elif fault.kind == "stop":
            world.children[name].send_signal(signal.SIGSTOP)
        else:
            self._dead.add(name)
            at, child = (
                (world.at_work(fault.node) if fault.node >= 0 else None),
                world.children[name],
            )
            child.kill()
            child.wait()
            self._started(fault.node)
            if at is not None:
                kept = world.checkpointed(fault.node).get(at[0], 0.0)
                self._measured.repeated_steps += max(0.0, at[1] * world.steps - kept)

    def _end(self, fault: Fault) -> None:
        world, name = self._world, "coordinator" if fault.node < 0 else str(fault.node)
        lasted_s = self.now_s - self._since[fault]
        if fault.kind == "stall":
            world.lines.go_on(fault.node)
        elif fault.kind == "stop":
            world.children[name].send_signal(signal.SIGCONT)
        else:
            self._dead.discard(name)
            self._restart(name)
        if fault.kind in ("kill", "stop"):
            self._measured.away_s += lasted_s
        row = asdict(fault) | {"at_s": round(self._since[fault], 2), "lasts_s": round(lasted_s, 2)}
        self._measured.done.append(row)

    def _started(self, node: int) -> None:
        """A start is over, one way or the other."""
        began_s = self._starting.pop(node, None)
        if began_s is not None and not self._measured.seconds:  # the measurement goes on
            self._measured.starting_s += self.now_s - began_s

    def _restart(self, name: str) -> None:
        if name == "coordinator":
            self._world.serve()
        else:
            self._world.start(int(name))
            self._starting[int(name)] = self.now_s
