"""Does a slow node make the others wait? Equal shares against shares by measured speed.

    python benchmarks/shares.py [--seed 1] [--json]

Two real nodes with fixed shares of a core, one three times the other's, do the same run twice,
one after the other: `assignment.capacity = "equal"`, then "throughput". `wait_s` is how long the
fast node had nothing to do while experts were trained, `training_s` how long that took in all.
With equal shares the slow node needs three times as long; with shares by speed both should be
done at about the same time, after the same number of steps in all. No copies are taken, so that
shares alone are seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from chaos import SETTINGS, make_corpus
from chaos_world import World, good, processes

CORES = (0.6, 0.2)
STEPS = 1200
ROUNDS = 4
CHUNK_SEQUENCES = 4096  # rounds of seconds: speeds measured over less are rough


def measure(folder: Path, corpus: Path, capacity: str, seed: int) -> dict[str, object]:
    """One run; what its coordinator says of the two experts."""
    folder.mkdir()
    own = {
        "run.experts": len(CORES),
        "run.nodes_to_start": len(CORES),
        "run.seed": seed,
        "run.spare_copies": 0,
        "router.rounds": ROUNDS,
        "router.chunk_sequences": CHUNK_SEQUENCES,
        "assignment.capacity": capacity,
    }
    with processes() as children:
        world = World(folder, corpus, SETTINGS | own, STEPS, children, CORES)
        try:
            world.wait(
                lambda: all(child.poll() == 0 for name, child in world.children.items()
                            if name != "coordinator"),
                "the run to finish",
                1800.0,
            )  # fmt: skip
            status = json.loads(good("smalltalk_coordinator.cli", "status", world.run, "--json"))
        finally:
            world.close()
    began, rows = status["phase_started"]["training"], status["experts_done"]
    ends = sorted(row["at"] for row in rows)
    last = status["routing"][-1]
    return {
        "training_s": round(ends[-1] - began, 1),
        "wait_s": round(ends[-1] - ends[0], 1),
        "steps": sorted(int(row["steps"]) for row in rows),
        "last_round_s": sorted(round(seconds, 1) for seconds in last["seconds"]),
        "last_round_load": sorted(last["load"]),
    }


def main() -> None:
    """Measure twice and print."""
    parser = argparse.ArgumentParser(description="Equal shares against shares by speed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shares-") as place:
        corpus = make_corpus(Path(place))
        report = {
            capacity: measure(Path(place) / capacity, corpus, capacity, arguments.seed)
            for capacity in ("equal", "throughput")
        }
    if arguments.json:
        print(json.dumps(report))
        return
    for capacity, row in report.items():
        print(capacity, *(f"{name} {value}" for name, value in row.items()), sep="  ")


if __name__ == "__main__":
    main()
