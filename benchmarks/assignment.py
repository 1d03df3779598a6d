"""Seconds, peak memory and excess of the three assignment methods at the paper's size.

    python benchmarks/assignment.py [--sequences 1400000] [--experts 32] [--json]

Scores are made up: texts of eight domains of unequal size, that routers like to unequal
degrees, as they arrive at a coordinator (multiples of 1/32 nat). Every method runs in a process
of its own, whose highest resident size is what is printed: interpreter, numpy and scores
included. Seconds are of the assignment alone, the best of `--repeat` runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

from smalltalk_fed.mixture.assignment import assign, equal_capacity

METHODS = ("paper", "regret", "optimal")
DOMAINS = 8
BLOCK = 1 << 15


def made_up_scores(sequences: int, experts: int, seed: int) -> np.ndarray:
    """Return scores_NxE, float32, filled in blocks so that nothing else takes memory."""
    rng = np.random.default_rng(seed)
    size = 1 / np.arange(1, DOMAINS + 1)
    liking = rng.normal(size=(DOMAINS, experts)) * 4 + rng.normal(size=experts)
    scores_NxE = np.empty((sequences, experts), dtype=np.float32)
    for start in range(0, sequences, BLOCK):
        block = scores_NxE[start : start + BLOCK]
        domain = rng.choice(DOMAINS, size=len(block), p=size / size.sum())
        level = rng.normal(-850, 60, size=(len(block), 1))
        block[:] = np.round((liking[domain] + level + rng.normal(0, 3, block.shape)) * 32) / 32
    return scores_NxE


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run one method in this process."""
    scores_NxE = made_up_scores(arguments.sequences, arguments.experts, arguments.seed)
    capacity_E = equal_capacity(arguments.sequences, arguments.experts)
    seconds, cpu_seconds = [], []
    for _ in range(arguments.repeat):
        start, cpu_start = time.perf_counter(), time.process_time()
        assignment = assign(scores_NxE, capacity_E, arguments.method)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return {
        "method": arguments.method,
        "seconds": round(min(seconds), 2),
        "cpu_seconds": round(min(cpu_seconds), 2),
        "peak_mb": round(peak_kib * (1 if sys.platform == "darwin" else 1024) / 1e6),
        "scores_mb": round(scores_NxE.nbytes / 1e6),
        "excess_nats": round(assignment.stats.excess_nats, 4),
        "displaced_fraction": round(assignment.stats.displaced_fraction, 4),
    }


def in_a_child(method: str) -> dict[str, object]:
    """Run one method in a process of its own, with one thread."""
    command = [sys.executable, __file__, *sys.argv[1:], "--method", method, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the assignment methods.")
    parser.add_argument("--sequences", type=int, default=1_400_000)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, help="run this one in this process")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments)))
        return
    results = [in_a_child(method) for method in METHODS]
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    print(
        f"{arguments.sequences:,} sequences x {arguments.experts} experts, numpy {np.__version__}"
    )
    print(f"{'':10}{'seconds':>9}{'CPU s':>8}{'peak MB':>9}{'excess nats':>13}{'displaced':>11}")
    for row in results:
        print(
            f"{row['method']:10}{row['seconds']:>9}{row['cpu_seconds']:>8}{row['peak_mb']:>9}"
            f"{row['excess_nats']:>13}{row['displaced_fraction']:>11}"
        )


if __name__ == "__main__":
    main()
