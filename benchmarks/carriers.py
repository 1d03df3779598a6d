"""The two carriers side by side: time, bytes, CPU and memory of a round, four nodes on loopback.

    unshare -rn sh -c 'ip link set lo up; exec python benchmarks/carriers.py'
    python benchmarks/carriers.py [--carrier native,flower] [--rounds 6] [--nodes 4] [--json]

The same run over the programs' mutual-TLS gRPC and over Flower (SuperLink and SuperNodes as
processes, TLS, node authentication). Router states are 8.8 MB (2.2 million parameters at four
bytes, with a vocabulary of 32,700); there is little to compute, so what is measured is what
the carrier costs. A round is the time from one division of a chunk to the next, the first left
out; CPU and what loopback carried are those of the same time, divided by the rounds.

Loopback is all that it carried, both directions of every connection once: nothing else should
use it, and `unshare -rn` gives the benchmark one of its own. CPU is of the whole process trees,
ended ones included; memory is the highest sum of proportional set sizes seen in the whole run.
`coordinator` is `smalltalk-coordinator`, or SuperLink, SuperExec and ServerApp. Bytes of messages
are the ledger's, of the whole run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from smalltalk_fed.config.manifest import (
    CorpusManifest,
    ShardEntry,
    SplitManifest,
    canonical_json,
    sha256,
)
from smalltalk_fed.core.events import RoundAssigned
from smalltalk_fed.demo.children import Child, Children, program
from smalltalk_fed.demo.driver import ending_politely
from smalltalk_fed.demo.federation import Federation
from smalltalk_fed.demo.running import free_ports
from smalltalk_fed.demo.watching import wait_for_line
from smalltalk_fed.flower.app_folder import write_app
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.telemetry.ledger import Ledger

VOCABULARY, LENGTH, SEQUENCES = 32_700, 32, 256
LIMIT_S = 1800.0
LOOK_S, MEMORY_EVERY = 0.5, 4
ROUNDS_LEAST = 3  # the first is left out, and a round ends with the next division
RUN_TOML = """
[run]
experts = {nodes}
nodes_to_start = {nodes}
poll_s = 5.0
[sequence]
length = 32
prefix = 16
[router]
model = {{ hidden = 64, layers = 2, heads = 4, feed_forward = 192 }}
rounds = {rounds}
chunk_sequences = 64
batch_sequences = 16
[expert]
model = {{ hidden = 8, layers = 1, heads = 1, feed_forward = 8 }}
steps = 2
batch_sequences = 2
collect = "never"
[compute]
threads = 1
[audit]
rate = 0.0
first_units = 0
"""


@dataclass
class Usage:
    """CPU, memory and loopback over time; trees of processes by whose they are."""

    roots: dict[str, list[Child]]
    at: list[float] = field(default_factory=list)  # Unix seconds of each look
    loopback_mb: list[float] = field(default_factory=list)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def watch(self) -> None:
        """Look twice a second until `end`."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def between(self, values: list[float], first: float, last: float) -> float:
        """How much a counter grew between two times."""
        before, after = np.interp([first, last], self.at, values)
        return float(after - before)

    def _watch(self) -> None:
        looks = 0
        while not self._over.wait(LOOK_S):
            children = _children()
            self.at.append(time.time())
            self.loopback_mb.append(loopback_mb())
            for whose, roots in self.roots.items():
                pids = _tree([child.process.pid for child in roots], children)
                known = self.cpu_s.setdefault(whose, [])
                # Of a process that has just ended nobody may have the sum yet.
                known.append(max(sum(_cpu_s(pid) for pid in pids), *known[-1:], 0.0))
                if looks % MEMORY_EVERY == 0:  # the kernel walks all pages for it
                    used = sum(_pss_mb(pid) for pid in pids)
                    self.peak_mb[whose] = max(used, self.peak_mb.get(whose, 0.0))
            looks += 1


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(path.parent.name))
    return found


def _tree(roots: list[int], children: dict[int, list[int]]) -> list[int]:
    left, found = list(roots), []
    while left:
        pid = left.pop()
        found.append(pid)
        left += children.get(pid, [])
    return found


def _pss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _cpu_s(pid: int) -> float:
    """Of a process and of its children that ended: user and system."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def loopback_mb() -> float:
    """What loopback has carried, in MB."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0]) / 1e6
    return 0.0


def write_corpus(folder: Path) -> None:
    """Random tokens."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    rng, splits = np.random.default_rng(1), {}
    for name, count in (("train", SEQUENCES), ("heldout", 64)):
        data = rng.integers(0, VOCABULARY, (count, LENGTH)).astype("<u2").tobytes()
        (folder / f"{name}-00000.bin").write_bytes(data)
        entry = ShardEntry(file=f"{name}-00000.bin", sequences=count, sha256=sha256(data))
        splits[name] = SplitManifest(shards=(entry,), documents=count)
    manifest = CorpusManifest(
        sequence_tokens=LENGTH,
        dtype="uint16",
        vocabulary=VOCABULARY,
        tokenizer_sha256=sha256(b"{}"),
        **splits,
    )
    (folder / "corpus.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))


def native(place: Path, children: Children, nodes: int) -> dict[str, list[Child]]:
    """Coordinator and nodes; they end by themselves once the run is over."""
    run, enrolment = free_ports(2)
    command = program("smalltalk-coordinator")
    at = ("--run-address", f"127.0.0.1:{run}", "--enrol-address", f"127.0.0.1:{enrolment}")
    about = ("--config", str(place / "run.toml"), "--corpus", str(place / "corpus"))
    children.run("init", [command, "init", str(place / "run"), *about, *at])
    serving = children.start("coordinator", [command, "serve", str(place / "run")])
    wait_for_line(serving, "serving ", 60.0)
    invite = [command, "invite", str(place / "run"), "--uses", str(nodes)]
    token = children.run("invite", invite).strip()
    started = []
    for number in range(nodes):
        here = ("--dir", str(place / f"node-{number}"))
        children.run("join", [program("smalltalk-node"), "join", token, *here])
        run_it = [program("smalltalk-node"), "run", *here, "--device", "cpu"]
        started.append(
            children.start(f"node-{number}", [*run_it, "--corpus", str(place / "corpus")])
        )
    return {"coordinator": [serving], "nodes": started}


def flower(place: Path, children: Children, nodes: int) -> dict[str, list[Child]]:
    """SuperLink and SuperNodes, with the run handed in."""
    federation = Federation(place, children)
    federation.start()
    for number in range(nodes):
        where = {"dir": str(place / f"node-{number}"), "corpus": str(place / "corpus")}
        federation.add_node(f"node-{number}", where | {"device": "cpu", "name": f"n{number}"})
    app = write_app(place / "app")
    federation.submit(
        app,
        run_dir=str(place / "run"),
        corpus=str(place / "corpus"),
        config=str(place / "run.toml"),
    )
    assert federation.superlink is not None
    return {"coordinator": [federation.superlink], "nodes": federation.supernodes}


def measure(carrier: str, nodes: int, rounds: int) -> dict[str, Any]:
    """One run over one carrier."""
    with tempfile.TemporaryDirectory(prefix="carriers-") as folder:
        place = Path(folder)
        write_corpus(place / "corpus")
        (place / "run.toml").write_text(RUN_TOML.format(nodes=nodes, rounds=rounds))
        environment = Federation.environment(place) if carrier == "flower" else {}
        began = time.monotonic()
        with ending_politely(), Children(place / "logs", environment) as children:
            start = {"native": native, "flower": flower}[carrier]
            usage = Usage(start(place, children, nodes))
            usage.watch()
            while not (place / "run" / "mixture").exists():
                children.check()
                if time.monotonic() - began > LIMIT_S:
                    raise SystemExit(f"{carrier}: not over within {LIMIT_S:.0f} s")
                time.sleep(0.5)
            time.sleep(1.0)
            usage.end()
            run_s = time.monotonic() - began
        return {
            "carrier": carrier,
            "nodes": nodes,
            "rounds": rounds,
            "run_s": run_s,
            "peak_mb": usage.peak_mb,
            **_of_the_run(RunFolder.open(place / "run"), usage),
        }


def _of_the_run(folder: RunFolder, usage: Usage) -> dict[str, Any]:
    journal = Journal(folder.journal, create=False)
    try:
        at = [event.at for event in journal.events() if isinstance(event, RoundAssigned)]
        ledger = Ledger.from_json(journal.get("ledger") or [])
    finally:
        journal.close()
    at = at[1:]
    times = [after - before for before, after in pairwise(at)]
    return {
        "round_s": float(np.median(times)),
        "round_s_worst": max(times),
        "loopback_mb_a_round": usage.between(usage.loopback_mb, at[0], at[-1]) / len(times),
        "cpu_s_a_round": {
            whose: usage.between(values, at[0], at[-1]) / len(times)
            for whose, values in usage.cpu_s.items()
        },
        "messages_bytes": ledger.by_kind(),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--carrier", default="native,flower")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < ROUNDS_LEAST:
        raise SystemExit(f"--rounds must be {ROUNDS_LEAST} or more: the first is left out")
    for carrier in arguments.carrier.split(","):
        found = measure(carrier, arguments.nodes, arguments.rounds)
        print(json.dumps(found) if arguments.json else _sentence(found), flush=True)


def _sentence(one: dict[str, Any]) -> str:
    cpu, peak = one["cpu_s_a_round"], one["peak_mb"]
    return (
        f"{one['carrier']}: {one['round_s']:.2f} s a round (worst {one['round_s_worst']:.2f}), "
        f"{one['loopback_mb_a_round']:.1f} MB over loopback a round, CPU a round "
        f"{cpu['coordinator']:.1f} s coordinator and {cpu['nodes']:.1f} s nodes; memory at most "
        f"{peak['coordinator']:.0f} MB and {peak['nodes']:.0f} MB; {one['run_s']:.0f} s in all"
    )


if __name__ == "__main__":
    main()
