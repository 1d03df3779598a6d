"""One node floods a coordinator: what do fifty honest ones feel of it?

    python benchmarks/flood.py [--kinds compute,exchange,join,garbage,upload,download] [--json]

One real `smalltalk-coordinator serve`, one process of honest nodes, one that floods
(`flood_nodes.py`), on the same machine over real mutual TLS. Honest nodes say four times a
second where they are, and fetch a small blob now and then; their latencies are measured.
Quiet and flooded phases take turns, and each flooded phase has a new flooder, so that its
first burst is in every one of them. The flooder has a low priority: the honest nodes' own
share of the cores is not what is measured. The kind `compute` sends nothing and computes as
much as it can: what it costs the honest nodes is this machine's part of every row. On a busy
machine `chrt -r 1 python benchmarks/flood.py` (as root) leaves other work out of the figures. A
row a kind of flood:

    quiet_p99_ms, flooded_p99_ms, ratio     of the honest nodes' questions
    fetch_quiet_p99_ms, fetch_flooded_p99_ms  of their downloads
    calls_per_s, refused, dropped, why      what the flooder did, and what it was told last
    failures                                honest calls that were not answered (must be 0)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from load import enrol, heard, make_run, percentile_ms, tell
from process_facts import cpu_s, status_mb

HERE = Path(__file__).parent
KINDS = ("compute", "exchange", "join", "garbage", "upload", "download")


def behind_the_others() -> None:
    """Give way to coordinator and honest nodes, also if they have a real-time priority."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(10)


def spawn(
    stack: ExitStack, table: Path, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """A process of `flood_nodes.py`."""
    child = subprocess.Popen(
        [sys.executable, str(HERE / "flood_nodes.py"), str(table), *arguments],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=before,
    )
    stack.callback(child.kill)
    return child


def serve(stack: ExitStack, folder: Path, arguments: argparse.Namespace) -> tuple[Any, Path]:
    """A coordinator in its first round, and the table that the nodes read."""
    kinds = arguments.kinds.split(",")
    run = make_run(
        folder,
        Namespace(experts=4, nodes=1, lease_s=60.0, chunk_sequences=43_945, vocabulary=9076),
    )
    nodes = enrol(run, arguments.nodes + len(kinds) * arguments.cycles)
    log = stack.enter_context((folder / "coordinator.log").open("wb"))
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "smalltalk_coordinator.cli", "serve", str(run.path)],
        stdout=subprocess.PIPE,
        stderr=log,
    )
    stack.callback(coordinator.kill)
    assert coordinator.stdout is not None
    assert coordinator.stdout.readline(), (folder / "coordinator.log").read_text()
    table = folder / "nodes.json"
    table.write_text(
        json.dumps(
            {
                "address": run.addresses.run,
                "authority": run.authority().certificate_pem.decode(),
                "manifest": run.manifest.to_bytes().decode(),
                "blobs": str(run.blobs),
                "honest": nodes[: arguments.nodes],
                "flooders": nodes[arguments.nodes :],
            }
        )
    )
    return coordinator, table


def measure(stack: ExitStack, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every kind of flood, in turns with quiet."""
    coordinator, table = serve(stack, folder, arguments)
    honest = spawn(stack, table, "honest", "--seed", str(arguments.seed))
    heard(honest)  # all have joined
    kinds, phases, flooder = arguments.kinds.split(","), [], 0
    floods: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    started, cpu = time.monotonic(), cpu_s(coordinator.pid)
    for _ in range(arguments.cycles):
        for kind in kinds:
            quiet = time.monotonic()
            time.sleep(arguments.seconds)
            child = spawn(stack, table, kind, "--node", str(flooder), before=behind_the_others)
            flooder += 1
            heard(child)  # it is connected
            quiet_end = flooded = time.monotonic()
            tell([child])
            time.sleep(arguments.seconds)
            flooded_end = time.monotonic()
            tell([child])
            floods[kind].append(heard(child))
            child.wait(30)
            phases.append((kind, (quiet, quiet_end), (flooded, flooded_end)))
            time.sleep(0.5)  # what was under way is over
    seconds, cpu = time.monotonic() - started, cpu_s(coordinator.pid) - cpu
    tell([honest])
    said = heard(honest)
    report = {
        "rows": [row(kind, phases, floods[kind], said, arguments) for kind in kinds],
        "nodes": arguments.nodes,
        "seconds_each": arguments.seconds * arguments.cycles,
        "rss_mb": round(status_mb(coordinator.pid, "VmHWM"), 1),
        "cpu_share": round(cpu / seconds, 2),
        "seed": arguments.seed,
    }
    coordinator.send_signal(signal.SIGTERM)
    coordinator.wait(30)
    return report


def row(
    kind: str,
    phases: list[Any],
    floods: list[dict[str, Any]],
    said: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One kind's figures over all cycles."""

    def within(what: str, part: int) -> list[float]:
        spans = [phase[part] for phase in phases if phase[0] == kind]
        return [took for at, took in said[what] if any(begin <= at < end for begin, end in spans)]

    quiet, flooded = within("exchange", 1), within("exchange", 2)
    quiet_ms, flooded_ms = percentile_ms(quiet, 99), percentile_ms(flooded, 99)
    seconds = arguments.seconds * arguments.cycles
    return {
        "kind": kind,
        "quiet_p50_ms": percentile_ms(quiet, 50),
        "flooded_p50_ms": percentile_ms(flooded, 50),
        "quiet_p99_ms": quiet_ms,
        "flooded_p99_ms": flooded_ms,
        "ratio": round(flooded_ms / quiet_ms, 2) if flooded_ms and quiet_ms else None,
        "fetch_quiet_p99_ms": percentile_ms(within("fetch", 1), 99),
        "fetch_flooded_p99_ms": percentile_ms(within("fetch", 2), 99),
        "questions": [len(quiet), len(flooded)],
        "calls_per_s": round(sum(flood["calls"] for flood in floods) / seconds, 1),
        "mb_per_s": round(sum(flood["bytes"] for flood in floods) / seconds / 1e6, 1),
        "refused": sum(flood["refused"] for flood in floods),
        "dropped": sum(flood["dropped"] for flood in floods),
        "why": floods[-1]["why"],
        "failures": said["failures"],
    }


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description="Flood a coordinator from one node.")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, with commas")
    parser.add_argument("--nodes", type=int, default=50, help="honest ones")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a phase")
    parser.add_argument("--cycles", type=int, default=2, help="phases of each kind, and quiet ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flood-")))
        report = measure(stack, folder, arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    for line in report.pop("rows"):
        print(", ".join(f"{name} {value}" for name, value in line.items()))
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
