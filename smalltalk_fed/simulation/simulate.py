"""A scenario becomes a world, and the world a report.

Rules: everything is made here and nothing else knows all parts. The run ends when the
coordinator's run is over and nothing more can happen to it, when a rule is broken, or at the
scenario's limit.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.events import UnitAccepted, from_json
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey
from smalltalk_fed.simulation.availability import Life
from smalltalk_fed.simulation.contents import Blobs
from smalltalk_fed.simulation.coordinator_host import CoordinatorHost
from smalltalk_fed.simulation.faults import (
    CoordinatorReboot,
    Fault,
    NodeCrash,
    NodeLeaves,
    NodeSleeps,
    OperatorPauses,
    OperatorRevokes,
    Partition,
    SlowDisk,
    UnitFails,
)
from smalltalk_fed.simulation.ideal import Ideal
from smalltalk_fed.simulation.invariants import Watch
from smalltalk_fed.simulation.liars import draw_lies
from smalltalk_fed.simulation.machine import Machine, Shared
from smalltalk_fed.simulation.measures import Measures
from smalltalk_fed.simulation.network import Line, Network
from smalltalk_fed.simulation.report import Report, make_report
from smalltalk_fed.simulation.rules import Rule, Violation
from smalltalk_fed.simulation.scenario import Scenario
from smalltalk_fed.simulation.world import DAY_S, START_S, Trace, World

_OPERATOR_RETRY_S = 5.0
_REPLACED_S = DAY_S  # the paper's fixed set of nodes: a spare machine comes after so long

OnProgress = Callable[[World, CoordinatorHost], None]


class Simulation:
    """One world and all that is in it."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        make: type[Coordinator] = Coordinator,
        trace: Trace | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.scenario, self._on_progress = scenario, on_progress
        self.world = world = World(scenario.seed, trace)
        self.measures = Measures(len(scenario.manifest.to_bytes()) + 160)
        self.blobs = Blobs()
        self.network = Network(world, scenario.network, self.measures)
        self.watch = Watch(world, scenario.manifest, self.blobs)
        self.host = CoordinatorHost(world, scenario, self.blobs, self.watch, self.measures, make)
        self.network.server = self.host
        self.host.on_damage = self._repair
        secret = hashlib.sha256(b"the one invitation").hexdigest()
        self.shared = Shared(scenario, self.network, self.blobs, self.measures, secret)
        lies = draw_lies(world, scenario.liars, scenario.fleet.nodes)
        self.machines = [
            Machine(world, self.shared, number, self._faults_of(number), told)
            for number, told in enumerate(lies)
        ]
        self.watch.audits.liars = {m.name: None for m in self.machines if m.lies}
        self._operator = self.network.operator_line()
        self._ideal = Ideal(scenario)
        self._dormant = list(self.machines)

    def run(self) -> Report:
        """Let the world run."""
        began = time.perf_counter(), time.process_time()
        violations: list[Violation] = []
        try:
            self._begin()
            self.world.run(START_S + self.scenario.limit_s)
            self._end()
        except Violation as violation:
            violations.append(violation)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            detail = f"{type(error).__name__}: {error} (line {where.lineno} of {where.filename})"
            violations.append(Violation(Rule.SOUND, detail))
        took_s = time.perf_counter() - began[0], time.process_time() - began[1]
        return make_report(self, violations, self._useful_s(), self._ideal, took_s)

    @property
    def finished(self) -> bool:
        """Whether the run came to its good end."""
        return self.host.coordinator.state.phase is Phase.FINISHED

    # -------------------------------------------------------------------------- how it begins

    def _begin(self) -> None:
        world, scenario = self.world, self.scenario
        self.host.boot()
        invite = msg.MakeInvite(self.shared.secret, START_S + 10_000 * DAY_S, scenario.fleet.nodes)
        self._operate(invite)
        if scenario.policy == "paper":
            self._begin_fixed()
        elif scenario.fleet.diurnal:
            for machine in self.machines:
                Life(world, scenario.fleet, machine)
        else:
            rng = world.stream("arrivals")
            for machine in self.machines:
                world.after(
                    rng.uniform(0.1, 0.2 + scenario.fleet.arrive_within_s), machine.switch_on
                )
        for fault in scenario.faults:
            self._plan(fault)
        world.after(scenario.sample_s, self._sample)

    def _begin_fixed(self) -> None:
        """The paper's: one machine an expert, always the same; a lost one is replaced."""
        for _ in range(self.scenario.experts):
            self._add_machine()

    def _add_machine(self) -> None:
        if not self._dormant:
            return
        machine = self._dormant.pop(0)
        life = Life(self.world, replace(self.scenario.fleet, late_share=0.0), machine)
        self.world.at(life.ends_at + _REPLACED_S, self._add_machine)

    def _faults_of(self, number: int) -> list[Fault]:
        addressed = (NodeCrash, NodeLeaves, UnitFails)
        return [f for f in self.scenario.faults if isinstance(f, addressed) and f.node == number]

    # -------------------------------------------------------------------------------- faults

    def _plan(self, fault: Fault) -> None:
        """Faults that are addressed by time; the others lie where they happen."""
        world = self.world
        match fault:
            case Partition():
                lines = [m.line for m in self._machines(fault.nodes)]
                world.at(START_S + fault.at_s, self._cut, lines, 1)
                world.at(START_S + fault.at_s + fault.for_s, self._cut, lines, -1)
            case CoordinatorReboot():
                world.at(START_S + fault.at_s, self.host.crash, fault.down_s)
            case NodeSleeps():
                for machine in self._machines((fault.node,)):
                    world.at(START_S + fault.at_s, machine.sleep)
                    world.at(START_S + fault.at_s + fault.for_s, machine.wake)
            case SlowDisk():
                world.at(START_S + fault.at_s, self._set_disk, fault.commit_s)
                end = START_S + fault.at_s + fault.for_s
                world.at(end, self._set_disk, self.scenario.commit_s)
            case OperatorRevokes():
                for machine in self._machines((fault.node,)):
                    world.at(START_S + fault.at_s, self._revoke, machine)
            case OperatorPauses():
                pause, resume = msg.Pause("maintenance"), (msg.Resume(),)
                world.at(START_S + fault.at_s, self._operate, pause, fault.for_s, resume)

    def _revoke(self, machine: Machine) -> None:
        if machine.node_id:
            self._operate(msg.Revoke(machine.node_id, "it was lent to somebody else"))

    def _machines(self, numbers: Sequence[int]) -> list[Machine]:
        return [self.machines[number] for number in numbers if number < len(self.machines)]

    def _cut(self, lines: list[Line], more: int) -> None:
        self.world.note(f"{len(lines)} lines are {'cut' if more > 0 else 'there again'}")
        for line in lines:
            line.cuts += more

    def _set_disk(self, commit_s: float) -> None:
        self.world.note(f"a commit takes {commit_s:g} s")
        self.host.disk.commit_s = commit_s

    def _operate(
        self, request: msg.Request, then_s: float = 0.0, then: tuple[msg.Request, ...] = ()
    ) -> None:
        """The operator asks, again until there is an answer, and goes on with `then`."""

        def again() -> None:
            self.world.after(_OPERATOR_RETRY_S, self._operate, request, then_s, then)

        def done(answer: object) -> None:
            """A refusal is an answer too, such as to pause a run that is over."""
            for following in then[:1]:
                self.world.after(then_s, self._operate, following, then_s, then[1:])

        self._operator.call(request, 30.0, done, done, again)

    def _repair(self, ref: BlobRef, repair_s: float) -> None:
        """The operator puts a damaged blob back, and resumes the run if it stopped for it."""

        def put_back() -> None:
            self.blobs.restore(ref.digest)
            self._operate(msg.Resume())

        self.world.after(repair_s, put_back)

    # ------------------------------------------------------------------------------- the end

    def _sample(self) -> None:
        """Once in a while: what can only be seen from outside; and whether it is over."""
        world, coordinator = self.world, self.host.coordinator
        if self.host.up:
            phase = coordinator.state.phase
            if phase in (Phase.FINISHED, Phase.FAILED) and self._all_told():
                world.stopped = True
                return
            self._sample_leases()
            self._decide_disputes()
        sample_s = self.scenario.sample_s
        self._ideal.sample(world.elapsed_s, sample_s, self.machines)
        if self._on_progress is not None:
            self._on_progress(world, self.host)
        world.after(sample_s, self._sample)

    def _decide_disputes(self) -> None:
        """The operator lets a run go on that was paused because nodes disagree."""
        state = self.host.coordinator.state
        if state.phase is Phase.PAUSED and "is disputed" in state.reason:
            self._operate(msg.Resume())

    def _all_told(self) -> bool:
        """Whether every program that runs has learned that the run is over."""
        return all(m.process is None or m.process.asleep or m.line.cuts for m in self.machines)

    def _sample_leases(self) -> None:
        measures, leases, now = self.measures, self.host.coordinator.leases, self.host.now()
        at = {m.node_id: m.process.work.unit for m in self.machines if m.process is not None}
        for lease in leases.by_node.values():
            measures.leases_seen += 1
            measures.lease_ages_s.append(now - (lease.until - leases.lease_s))
            unit = at.get(lease.node_id)
            if unit is None or unit.key != lease.key:
                measures.leases_stale += 1

    def _end(self) -> None:
        for machine in self.machines:
            machine.settle()
        self.host.check_replay()
        state = self.host.coordinator.state
        if self.scenario.must_end and not self.finished:
            left = ", ".join(key.unit_id for key in state.open) or "nothing"
            raise Violation(
                Rule.ENDS,
                f"after {self.world.elapsed_s / DAY_S:.2f} days it is {state.phase} "
                f"({state.reason}); open: {left}",
            )

    def _useful_s(self) -> float:
        """Reference seconds that the accepted results are made of."""
        scenario, useful_s = self.scenario, 0.0
        accepted: dict[str, None] = {}
        for kind, body in self.host.disk.rows:
            event = from_json(kind, body)
            if isinstance(event, UnitAccepted):
                accepted[event.unit_id] = None
        for unit_id in accepted:
            useful_s += scenario.work.of(Unit(UnitKey.parse(unit_id)), scenario.manifest)
        return useful_s


def simulate(
    scenario: Scenario,
    *,
    make: type[Coordinator] = Coordinator,
    trace: Trace | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Run `scenario` to its end and report."""
    return Simulation(scenario, make=make, trace=trace, on_progress=on_progress).run()
