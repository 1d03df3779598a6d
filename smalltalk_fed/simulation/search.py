"""Searching seeds for a run that breaks a rule, and shrinking what was found.

Rules: a case is a seed and what was left out of its scenario; it is replayed by a command
line. Seeds are tried in parallel processes, the lowest that breaks is the one found.
Shrinking leaves out faults, then nodes, experts and the network's troubles, as long as the
same rule still breaks; every purpose has its own random stream, so the rest stays much as
it was.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.simulation.faults import Fault
from smalltalk_fed.simulation.report import Report
from smalltalk_fed.simulation.scenario import Scenario, under_faults
from smalltalk_fed.simulation.simulate import simulate

_SEEDS_AT_ONCE = 20
_SHRINK_RUNS_MAX = 150


@dataclass(frozen=True)
class Case:
    """One small run; None: as drawn from the seed."""

    seed: int
    nodes: int | None = None
    experts: int | None = None
    faults: tuple[int, ...] | None = None
    calm: bool = False

    def scenario(self) -> Scenario:
        """What is simulated."""
        return under_faults(
            self.seed,
            nodes=self.nodes,
            experts=self.experts,
            only=self.faults,
            calm=self.calm,
        )

    def command_line(self) -> str:
        """What replays it."""
        words = ["smalltalk simulate --scenario faults", f"--seed {self.seed}"]
        if self.nodes is not None:
            words.append(f"--nodes {self.nodes}")
        if self.experts is not None:
            words.append(f"--experts {self.experts}")
        if self.faults is not None:
            words.append(f"--faults {','.join(map(str, self.faults)) or 'none'}")
        if self.calm:
            words.append("--calm")
        return " ".join(words)


@dataclass(frozen=True)
class Found:
    """A broken rule: as it was found, and shrunk."""

    case: Case
    report: Report
    shrunk: Case
    shrunk_report: Report

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What still goes wrong in the shrunk case."""
        return self.shrunk.scenario().faults


def search(
    first_seed: int,
    count: int,
    *,
    processes: int = 1,
    make: type[Coordinator] = Coordinator,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Found | None:
    """Try `count` seeds; the first that breaks, shrunk, or None."""
    for done, broken in enumerate(_results(first_seed, count, processes, make), start=1):
        on_progress(min(count, done * _SEEDS_AT_ONCE))
        if broken is not None:
            case, report = Case(broken), simulate(Case(broken).scenario(), make=make)
            shrunk = shrink(case, report.broken_rule, make)
            return Found(case, report, shrunk, simulate(shrunk.scenario(), make=make))
    return None


def shrink(case: Case, rule: str, make: type[Coordinator] = Coordinator) -> Case:
    """The smallest case found that breaks the same rule."""
    runs = 0

    def breaks(smaller: Case) -> bool:
        nonlocal runs
        runs += 1
        if runs > _SHRINK_RUNS_MAX:
            return False
        return simulate(smaller.scenario(), make=make).broken_rule == rule

    drawn = case.scenario()
    numbers = case.faults if case.faults is not None else tuple(range(len(drawn.faults)))
    case = _fewer_faults(replace(case, faults=numbers), breaks)
    for nodes in range(1, drawn.fleet.nodes):
        if breaks(smaller := replace(case, nodes=nodes)):
            case = smaller
            break
    for experts in range(1, drawn.experts):
        if breaks(smaller := replace(case, experts=experts)):
            case = smaller
            break
    if not case.calm and breaks(smaller := replace(case, calm=True)):
        case = smaller
    return _fewer_faults(case, breaks)


def _fewer_faults(case: Case, breaks: Callable[[Case], bool]) -> Case:
    """Leave out as many as possible: ever smaller parts, down to each by itself."""
    kept = case.faults or ()
    part = len(kept)
    while part:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + part :]
            if breaks(replace(case, faults=fewer)):
                kept = fewer
            else:
                start += part
        part //= 2
    return replace(case, faults=kept)


def _results(
    first_seed: int, count: int, processes: int, make: type[Coordinator]
) -> Iterator[int | None]:
    """Of every batch of seeds, in order, the first that breaks."""
    end = first_seed + count
    batches = [
        (seed, min(seed + _SEEDS_AT_ONCE, end), make)
        for seed in range(first_seed, end, _SEEDS_AT_ONCE)
    ]
    if processes == 1:
        yield from map(_first_broken, batches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(_first_broken, batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _first_broken(batch: tuple[int, int, type[Coordinator]]) -> int | None:
    first, end, make = batch
    for seed in range(first, end):
        if simulate(Case(seed).scenario(), make=make).violations:
            return seed
    return None
