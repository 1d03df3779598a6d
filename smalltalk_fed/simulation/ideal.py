"""The time that a run would take if nothing were ever lost: a bound to compare with.

At any moment the E fastest machines that are on share the work that is left, handed over at
no cost; nobody waits for anybody. No policy can be faster with one machine an expert.
Sampled by the hour from the machines that really were on. Only machines that take part are
counted, the whole fleet, whatever the policy makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest

from smalltalk_fed.core.units import HELDOUT, Unit, UnitKey, UnitKind
from smalltalk_fed.simulation.machine import Machine
from smalltalk_fed.simulation.scenario import Scenario


class Ideal:
    """Adds up what the fastest machines could have done."""

    def __init__(self, scenario: Scenario) -> None:
        self._experts = scenario.experts
        self.work_s = total_work_s(scenario)
        self._done_s = 0.0
        self.finished_s: float | None = None

    def sample(self, elapsed_s: float, step_s: float, machines: Sequence[Machine]) -> None:
        """The machines that are on now were, for the last `step_s`."""
        if self.finished_s is not None:
            return
        on = (m.speed for m in machines if m.on and m.process and not m.process.asleep)
        rate = sum(nlargest(self._experts, on))
        if rate and self._done_s + rate * step_s >= self.work_s:
            self.finished_s = elapsed_s - step_s + (self.work_s - self._done_s) / rate
        self._done_s += rate * step_s


def total_work_s(scenario: Scenario) -> float:
    """Reference seconds of all units of the run."""
    manifest, work = scenario.manifest, scenario.work
    config, experts = manifest.config, manifest.experts

    def of(kind: UnitKind, index: int = 0) -> float:
        return work.of(Unit(UnitKey(kind, index=index)), manifest)

    total_s = experts * config.router.rounds * of(UnitKind.ROUTER_ROUND)
    total_s += manifest.shard_count * of(UnitKind.SHARD)
    total_s += experts * of(UnitKind.TRAIN_EXPERT)
    if config.expert.init == "seed":
        total_s += of(UnitKind.TRAIN_SEED)
    if manifest.heldout_sequences:
        total_s += of(UnitKind.SHARD, HELDOUT) + experts * of(UnitKind.EVALUATE)
    return total_s
