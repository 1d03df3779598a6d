"""Goodput under faults: 8 real nodes and a coordinator on one machine, against no faults.

    python benchmarks/chaos.py [--minutes 30] [--seed 1] [--json]

Twice the same run of 8 experts, one after the other: undisturbed, then with a seeded schedule
of kill -9, SIGSTOP, stalled lines and coordinator kills. Its density is that of 62 faults in
30 minutes over 32 nodes, by node-minutes: 0.065 a minute and node, so 15.5 in 30 minutes over
8 nodes. Killed programs are started again after some seconds, as by a service manager. Each
node has a fixed share of a core (a control group), so that a dead node's time goes to nobody.

Progress is counted over the same `--minutes` of the training phase: the steps that the
training of each expert would go on from, taken where a live node is or, for one that is not,
from its last checkpoint. `goodput_raw` is progress with faults through progress without;
`goodput` divides that by the share of node-seconds that the faults left possible, which are
all but those from a kill to the start of the next process, and those that a process was
stopped. Loading the program again (`starting_s`), steps done twice and everything else is on
us. Afterwards both runs go on to their ends, and their experts must be the same bytes
(`equal_experts`). A unit is lost that was finished by another node than had it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos_world import Fault, Lines, Share, make_schedule, processes
from smalltalk_node.identity import NodeFolder

from smalltalk_fed.config.manifest import sha256
from smalltalk_fed.data.packs import unpack_small

DOMAINS, DOCUMENTS = ("python", "scripture"), 60
SEQUENCE_TOKENS, BATCH = 64, 16
SETTINGS: dict[str, object] = {
    "run.lease_s": 20.0,
    "run.poll_s": 5.0,
    "sequence.length": SEQUENCE_TOKENS,
    "sequence.prefix": 16,
    "router.model": "router-mini",
    "router.rounds": 2,
    "router.chunk_sequences": 128,
    "router.batch_sequences": 8,
    "expert.model": "mini",
    "expert.batch_sequences": BATCH,
    "expert.optimizer.warmup_steps": 10,
    "compute.threads": 1,
    "compute.checkpoint_s": 5.0,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
LOOK_S = 0.05
START_S, END_S = 600.0, 1800.0
LONGER = 1.15  # the trainings are longer than the measurement by so much


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


def make_corpus(folder: Path) -> Path:
    """A small corpus of real text."""
    pack = unpack_small(folder / "pack")
    for domain in DOMAINS:
        lines = (pack / f"{domain}.jsonl").read_text().splitlines()[:DOCUMENTS]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    good(
        "smalltalk_fed.cli", "prepare", *(folder / f"{domain}.jsonl" for domain in DOMAINS),
        "--out", folder / "corpus", "--sequence-tokens", SEQUENCE_TOKENS, "--vocabulary", 300,
        "--label-field", "domain", "--split-field", "split",
    )  # fmt: skip
    return folder / "corpus"


@dataclass
class Measured:
    """What one run brought, and what was done to it."""

    steps: float = 0.0  # of all experts together, in the measured time
    seconds: float = 0.0
    done: list[dict[str, float | str]] = field(default_factory=list)
    away_s: float = 0.0  # node-seconds dead or stopped
    starting_s: float = 0.0  # node-seconds from a process's start to its first step
    unplanned_exits: int = 0
    lost_units: int = 0
    experts: list[str] = field(default_factory=list)  # digests


class World:
    """One run: the coordinator, the nodes, their lines and shares."""

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        settings: dict[str, object],
        children: dict[str, subprocess.Popen[bytes]],
        arguments: argparse.Namespace,
    ) -> None:
        self.folder, self.corpus, self.children = folder, corpus, children
        self.run, self.nodes = folder / "run", arguments.nodes
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
            Share(f"chaos-{os.getpid()}-{node}", arguments.cores) for node in range(self.nodes)
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

    def progress(self, steps: int) -> dict[int, float]:
        """Steps of each expert that its training would go on from now."""
        found: dict[int, float] = {}
        for node in range(self.nodes):
            work = self.at_work(node) if self.children[str(node)].poll() is None else None
            for folder in (self.folder / str(node) / "work").glob("*/train_expert-*/step-*"):
                expert = int(folder.parent.name.rpartition("-")[2])
                if work is None or work[0] != expert:
                    found[expert] = max(found.get(expert, 0.0), int(folder.name[5:]))
            if work is not None:
                found[work[0]] = max(found.get(work[0], 0.0), work[1] * steps)
        return found

    def wait(self, condition, what: str, seconds: float = START_S) -> None:  # type: ignore[no-untyped-def]
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


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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

    def look(self) -> None:
        """Do what is due; start again what ended by itself; see who has begun to train."""
        while self._due and self._due[0][0] <= self.now_s:
            _, begins, fault = self._due.pop(0)
            (self._begin if begins else self._end)(fault)
        for node in [n for n in self._starting if self._world.at_work(n)]:
            self._measured.starting_s += self.now_s - self._starting.pop(node)
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
            world.children[name].kill()
            world.children[name].wait()

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

    def _restart(self, name: str) -> None:
        if name == "coordinator":
            self._world.serve()
        else:
            self._world.start(int(name))
            self._starting[int(name)] = self.now_s


def measure(
    folder: Path, corpus: Path, steps: int, seconds: float, schedule: tuple[Fault, ...],
    arguments: argparse.Namespace, *, to_the_end: bool = True,
) -> Measured:  # fmt: skip
    """One run under a schedule."""
    folder.mkdir()
    own = {"run.experts": arguments.nodes, "run.nodes_to_start": arguments.nodes}
    measured = Measured()
    with processes() as children:
        world = World(folder, corpus, SETTINGS | own | {"expert.steps": steps}, children, arguments)
        try:
            nodes = range(world.nodes)
            world.wait(lambda: all(world.at_work(node) for node in nodes), "all nodes to train")
            had = {world.at_work(node)[0]: node for node in nodes}  # type: ignore[index]
            before = sum(world.progress(steps).values())
            executor = Executor(world, schedule, measured)
            while executor.now_s < seconds:
                executor.look()
                time.sleep(LOOK_S)
            measured.steps = sum(world.progress(steps).values()) - before
            measured.seconds = executor.now_s
            if to_the_end:
                finish(world, executor, had, measured)
        finally:
            world.close()
    return measured


def finish(world: World, executor: Executor, had: dict[int, int], measured: Measured) -> None:
    """Let the run end, and look at what came out."""

    def finished() -> bool:
        executor.look()
        ended = all(world.children[str(node)].poll() == 0 for node in range(world.nodes))
        return ended and len(world.experts()) == world.nodes

    world.wait(finished, "the run to finish", END_S)
    measured.experts = world.experts()
    status = json.loads(good("smalltalk_coordinator.cli", "status", world.run, "--json"))
    names = {node["node_id"]: node["name"] for node in status["nodes"]}
    measured.lost_units = sum(
        names[row["node_id"]] != str(had[row["expert"]]) for row in status["experts_done"]
    )


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure without and with faults."""
    corpus, seconds = make_corpus(folder), 60 * arguments.minutes
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    say("how fast is a node here?")
    probe = measure(folder / "probe", corpus, 10**6, 15.0, (), arguments, to_the_end=False)
    rate = probe.steps / probe.seconds / arguments.nodes
    steps = int(LONGER * rate * seconds) + 50
    schedule = make_schedule(arguments.seed, arguments.nodes, seconds, arguments.faults)
    say(f"{rate:.2f} steps/s and node: {steps} steps; without faults ...")
    calm = measure(folder / "calm", corpus, steps, seconds, (), arguments)
    say(f"{calm.steps:.0f} steps in {calm.seconds:.0f} s; with {len(schedule)} faults ...")
    chaos = measure(folder / "chaos", corpus, steps, seconds, schedule, arguments)
    raw = (chaos.steps / chaos.seconds) / (calm.steps / calm.seconds)
    possible = 1 - chaos.away_s / (arguments.nodes * chaos.seconds)
    tokens = BATCH * SEQUENCE_TOKENS
    return {
        "goodput": round(raw / possible, 4),
        "goodput_raw": round(raw, 4),
        "possible": round(possible, 4),
        "faults": len(chaos.done),
        "lost_units": chaos.lost_units,
        "equal_experts": chaos.experts == calm.experts,
        "tokens_per_s_calm": round(tokens * calm.steps / calm.seconds),
        "tokens_per_s_chaos": round(tokens * chaos.steps / chaos.seconds),
        "away_node_s": round(chaos.away_s, 1),
        "starting_node_s": round(chaos.starting_s, 1),
        "unplanned_exits": chaos.unplanned_exits,
        "minutes": arguments.minutes,
        "nodes": arguments.nodes,
        "cores_a_node": arguments.cores,
        "steps": steps,
        "seed": arguments.seed,
        "schedule": chaos.done,
    }


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description="Goodput of a run under a schedule of faults.")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each of the two runs")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--cores", type=float, default=0.2, help="share of a core of each node")
    parser.add_argument("--faults", type=int, help="so many, instead of the density's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = compare(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        if name != "schedule":
            print(f"{name:20} {value}")
    for row in report["schedule"]:  # type: ignore[attr-defined]
        print("  {at_s:7.1f} s  {kind} of node {node} for {lasts_s:.1f} s".format(**row))


if __name__ == "__main__":
    main()
