"""A world is a function of its seed: in every process, whatever else differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from smalltalk_fed.simulation.scenario import under_faults, volunteers
from smalltalk_fed.simulation.search import Case
from smalltalk_fed.simulation.simulate import simulate
from smalltalk_fed.simulation.world import START_S, Trace, World


def digest_in_a_process(hash_seed: str, *arguments: str) -> str:
    """What another process says, with its own order of sets."""
    code = "import sys; from smalltalk_fed.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "simulate", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    return str(json.loads(done.stdout)["trace_digest"])


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    arguments = ("--scenario", "faults", "--seed", "7")
    here = simulate(under_faults(7)).trace_digest
    assert digest_in_a_process("1", *arguments) == here
    assert digest_in_a_process("2", *arguments) == here


def test_a_fleet_of_volunteers_is_the_same_too() -> None:
    arguments = ("--nodes", "40", "--experts", "3", "--days", "0.5", "--seed", "5", "--no-paper")
    first, second = (digest_in_a_process(seed, *arguments) for seed in ("3", "4"))
    assert first == second == simulate(volunteers(40, 3, 0.5, 5)).trace_digest


def test_other_seeds_give_other_traces() -> None:
    digests = {simulate(under_faults(seed)).trace_digest for seed in range(6)}
    assert len(digests) == 6


def test_leaving_a_fault_out_changes_nothing_before_it() -> None:
    whole = Case(51)
    faults = whole.scenario().faults
    latest = max(range(len(faults)), key=lambda i: getattr(faults[i], "commit", 0))
    fewer = Case(51, faults=tuple(i for i in range(len(faults)) if i != latest))
    traces = []
    for case in (whole, fewer):
        lines: list[str] = []
        trace = Trace(lines.append)
        simulate(case.scenario(), trace=trace)
        trace.digest()
        traces.append("".join(lines).splitlines())
    same = next(i for i, (a, b) in enumerate(zip(*traces, strict=False)) if a != b)
    assert same > 30  # the two agree until the fault strikes
    assert "killed" in traces[0][same]


def test_purposes_draw_from_streams_of_their_own() -> None:
    world = World(3)
    first = world.stream("network", 1).random()
    world.stream("network", 2).random()
    assert World(3).stream("network", 1).random() == first
    assert World(4).stream("network", 1).random() != first


def test_events_happen_in_the_order_of_time_and_then_of_planning() -> None:
    world, seen = World(1), list[str]()
    world.after(2.0, seen.append, "second")
    world.after(1.0, seen.append, "first")
    world.after(2.0, seen.append, "third")
    world.at(START_S - 5.0, seen.append, "a time that has passed is now")
    world.run(START_S + 1.5)
    assert seen == ["a time that has passed is now", "first"]
    assert world.elapsed_s == 1.5
    world.run(START_S + 9.0)
    assert seen[2:] == ["second", "third"]
