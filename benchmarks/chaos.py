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
import sys
import tempfile
import time
from pathlib import Path

from chaos_faults import Executor, Fault, Measured, make_schedule
from chaos_world import LOOK_S, World, good, processes

from smalltalk_fed.data.packs import unpack_small

DOMAINS, DOCUMENTS = ("python", "scripture"), 60
SEQUENCE_TOKENS, BATCH = 64, 16
SETTINGS: dict[str, object] = {
    "run.lease_s": 20.0,
    "run.poll_s": 5.0,
    "sequence.length": SEQUENCE_TOKENS,
    "sequence.prefix": 16,
    "router.model": "router-mini",
    "router.rounds": 1,
    "router.chunk_sequences": 128,
    "router.batch_sequences": 8,
    "expert.model": "mini",
    "expert.batch_sequences": BATCH,
    "expert.optimizer.warmup_steps": 10,
    "compute.threads": 1,
    "compute.checkpoint_s": 5.0,
}
END_S = 1800.0
LONGER = 1.4  # trainings last so much longer: one that ends early leaves its node idle


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


def measure(
    folder: Path, corpus: Path, steps: int, seconds: float, schedule: tuple[Fault, ...],
    arguments: argparse.Namespace, *, to_the_end: bool = True,
) -> Measured:  # fmt: skip
    """One run under a schedule."""
    folder.mkdir()
    own = {"run.experts": arguments.nodes, "run.nodes_to_start": arguments.nodes}
    measured = Measured()
    with processes() as children:
        world = World(
            folder, corpus, SETTINGS | own, steps, children, [arguments.cores] * arguments.nodes
        )
        try:
            nodes = range(world.nodes)
            world.wait(lambda: all(world.at_work(node) for node in nodes), "all nodes to train")
            had = {world.at_work(node)[0]: node for node in nodes}  # type: ignore[index]
            before = world.progress()
            executor = Executor(world, schedule, measured)
            while executor.now_s < seconds:
                executor.look()
                time.sleep(LOOK_S)
            measured.steps = world.progress() - before
            measured.seconds = executor.now_s
            measured.starting_s += executor.starting_now_s
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
        "repeated_node_s": round(chaos.repeated_steps / rate, 1),
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
