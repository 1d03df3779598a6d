"""A thousand nodes over real mutual TLS against one coordinator: memory, latency, lost nodes.

    python benchmarks/load.py [--nodes 1000] [--seconds 60] [--json]

One real `smalltalk-coordinator serve`, and a few driver processes of light nodes
(`load_nodes.py`) on the same machine, so latencies contain the drivers' share of the cores.
Routing begins when all have joined: E of them work at a time and upload router states, the
others ask for work. `rss_mb` is the highest resident size of the serving process, its
assignment worker's is apart. `exchange_*` is of questions that are answered at once
(heartbeats, results, and idle nodes that are told to wait); held polls are apart. A node is
lost that never joined, or whose last question failed. `limits` says what broke, or what is
used up first as far as this run shows.

A router state is 8.8 MB: the paper's 4.4 million parameters at two bytes each. The product
sends four bytes a number, hence a smaller vocabulary; with `--vocabulary 32000` it is the
paper's model at 17.6 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from process_facts import children_mb, cpu_s, free_port, open_files, status_mb

from smalltalk_fed.config.manifest import CorpusManifest, canonical_json
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.wire.certificates import (
    key_to_pem,
    make_key,
    make_request,
    public_key_sha256,
)
from smalltalk_fed.wire.token import new_secret, secret_sha256

RSS_TARGET_MB = 200
HERE = Path(__file__).parent


def write_corpus(folder: Path, arguments: argparse.Namespace) -> None:
    """A corpus as far as a coordinator sees it: its manifest and a tokenizer."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    split = {
        "shards": [{"file": "train-00000.bin", "sequences": 1_400_000, "sha256": "0" * 64}],
        "documents": 1_400_000,
    }
    manifest = CorpusManifest.model_validate(
        {
            "sequence_tokens": 1024,
            "dtype": "uint16",
            "vocabulary": arguments.vocabulary,
            "tokenizer_sha256": hashlib.sha256(b"{}").hexdigest(),
            "train": split,
            "heldout": {"shards": [], "documents": 0},
        }
    )
    (folder / "corpus.json").write_bytes(canonical_json(manifest.model_dump(mode="json")))


def make_run(folder: Path, arguments: argparse.Namespace) -> RunFolder:
    """A run folder by the product's own `init`."""
    write_corpus(folder / "corpus", arguments)
    settings = {
        "run.experts": arguments.experts,
        "run.nodes_to_start": arguments.nodes,
        "run.lease_s": arguments.lease_s,
        "router.rounds": 100_000,
        "router.chunk_sequences": arguments.chunk_sequences,
        "audit.rate": 0.0,  # light nodes have no opinion on each other's scores
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(
        [
            sys.executable, "-m", "smalltalk_coordinator.cli", "init", str(folder / "run"),
            "--corpus", str(folder / "corpus"), "--run-address", f"127.0.0.1:{free_port()}",
            "--enrol-address", f"127.0.0.1:{free_port()}", *sets,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return RunFolder.open(folder / "run")


def enrol(run: RunFolder, count: int) -> list[dict[str, str]]:
    """Let `count` nodes in under one invitation, as the enrolment port would, all at once."""
    authority, now, secret = run.authority(), time.time(), secret_sha256(new_secret())
    nodes = []
    with run.locked():
        journal = Journal(run.journal)
        coordinator = Coordinator.replay(run.manifest, journal.events(), now)
        events = coordinator.handle(msg.MakeInvite(secret, now + 86400, count), 1, now).events
        for number in range(count):
            key = make_key()
            request = make_request(key, f"node-{number}")
            enrolment = msg.Enrol(secret, public_key_sha256(request), f"node-{number}")
            ready = coordinator.handle(enrolment, 1, now)
            answer = ready.replies[0].answer
            assert isinstance(answer, msg.Enrolled)
            events += ready.events
            certificate = authority.issue_node(request, answer.node_id, now)
            facts = {"key": key_to_pem(key).decode(), "certificate": certificate.decode()}
            nodes.append({"node_id": answer.node_id, **facts})
        journal.append(events)
        journal.close()
    return nodes


# ----------------------------------------------------------------------------------- measuring


def percentile_ms(seconds: list[float], percent: float) -> float | None:
    """A percentile in milliseconds, or None of nothing."""
    return round(float(np.percentile(seconds, percent)) * 1e3, 1) if seconds else None


def measure(folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> dict[str, object]:
    """Serve, let all nodes join, and look for `--seconds`."""
    run = make_run(folder, arguments)
    nodes = enrol(run, arguments.nodes)
    table = {
        "address": run.addresses.run,
        "authority": run.authority().certificate_pem.decode(),
        "manifest": run.manifest.to_bytes().decode(),
        "work_s": arguments.work_s,
        "arrive_s": arguments.nodes / 100,
        "seed": arguments.seed,
        "nodes": nodes,
    }
    (folder / "nodes.json").write_text(json.dumps(table))
    log = stack.enter_context((folder / "coordinator.log").open("wb"))
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "smalltalk_coordinator.cli", "serve", str(run.path)],
        stdout=subprocess.PIPE,
        stderr=log,
    )
    stack.callback(coordinator.kill)
    assert coordinator.stdout is not None
    assert coordinator.stdout.readline(), (folder / "coordinator.log").read_text()
    pid, start_mb = coordinator.pid, status_mb(coordinator.pid, "VmRSS")
    drivers = []
    for first in range(arguments.drivers):
        command = [sys.executable, str(HERE / "load_nodes.py"), str(folder / "nodes.json")]
        command += ["--first", str(first), "--step", str(arguments.drivers)]
        drivers.append(
            subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        stack.callback(drivers[-1].kill)
    began = time.monotonic()
    joined = sum(heard(driver)["joined"] for driver in drivers)
    join_s, joined_mb = time.monotonic() - began, status_mb(pid, "VmRSS")
    tell(drivers)
    began, cpu_began = time.monotonic(), cpu_s(pid)
    time.sleep(arguments.seconds)
    seconds, cpu = time.monotonic() - began, cpu_s(pid) - cpu_began
    used, limit = open_files(pid)
    tell(drivers)
    said = [heard(driver) for driver in drivers]
    report = {
        "nodes": arguments.nodes,
        "rss_mb": round(status_mb(pid, "VmHWM"), 1),
        "rss_start_mb": round(start_mb, 1),
        "rss_joined_mb": round(joined_mb, 1),
        "worker_rss_mb": round(children_mb(pid), 1),
        **latencies(said),
        "uploads_mb_s": round(sum(row["uploaded_bytes"] for row in said) / seconds / 1e6, 1),
        "results_per_s": round(sum(row["results"] for row in said) / seconds, 1),
        "lost_nodes": sum(row["lost"] for row in said),
        "joined": joined,
        "join_s": round(join_s, 1),
        "cpu_share": round(cpu / seconds, 2),
        "drivers_cpu_share": round(sum(row["cpu_s"] for row in said) / seconds, 2),
        "open_files": used,
        "open_files_limit": limit,
        "failures": merged([row["failures"] for row in said]),
        "seconds": round(seconds, 1),
        "seed": arguments.seed,
    }
    coordinator.send_signal(signal.SIGTERM)
    coordinator.wait(30)
    return report | {"limits": limits(report)}


def heard(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """A driver's next line."""
    assert driver.stdout is not None
    said: dict[str, Any] = json.loads(driver.stdout.readline())
    return said


def tell(drivers: list[subprocess.Popen[str]]) -> None:
    """One line to each: begin to count, or stop."""
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()


def latencies(said: list[dict[str, Any]]) -> dict[str, object]:
    """Percentiles over all drivers."""
    lines: dict[str, object] = {}
    for name in ("exchange", "held", "upload"):
        seconds = [value for row in said for value in row[f"{name}_s"]]
        lines[f"{name}s"] = len(seconds)
        lines[f"{name}_p50_ms"] = percentile_ms(seconds, 50)
        lines[f"{name}_p99_ms"] = percentile_ms(seconds, 99)
    return lines


def merged(tables: list[dict[str, int]]) -> dict[str, int]:
    """Failures by what and why, over all drivers."""
    sums: dict[str, int] = {}
    for table in tables:
        for name, count in table.items():
            sums[name] = sums.get(name, 0) + count
    return sums


def limits(report: dict[str, object]) -> list[str]:
    """What broke or is used up, in plain words; what is nearest to its limit comes first."""
    rss_mb, cpu_share, files, files_max = (
        float(str(report[name]))
        for name in ("rss_mb", "cpu_share", "open_files", "open_files_limit")
    )
    used = {
        f"memory: {rss_mb} MB of the {RSS_TARGET_MB} MB aimed at": rss_mb / RSS_TARGET_MB,
        f"CPU: {cpu_share} of the one core that an event loop can use": cpu_share,
        f"open files: {files:.0f} of {files_max:.0f}": files / files_max,
    }
    lines = [
        f"{share:.0%} of {what}"
        for what, share in sorted(used.items(), key=lambda entry: -entry[1])
    ]
    if report["lost_nodes"]:
        lines.insert(0, f"{report['lost_nodes']} nodes lost: {report['failures']}")
    return lines


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description="Load one coordinator with many nodes.")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--experts", type=int, default=32, help="E: so many work at a time")
    parser.add_argument("--drivers", type=int, default=2, help="processes that hold the nodes")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to look")
    parser.add_argument("--work-s", type=float, default=0.5, help="mean time of a unit")
    parser.add_argument("--lease-s", type=float, default=20.0, help="heartbeats come four times")
    parser.add_argument("--chunk-sequences", type=int, default=43_945)
    parser.add_argument("--vocabulary", type=int, default=9076)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        report = measure(folder, arguments, stack)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
