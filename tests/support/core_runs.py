"""Four nodes, perhaps one a liar, that work, stall, fail, leave; a coordinator that restarts.

A state machine for Hypothesis, and for walks of any length (`WEIGHTS` says how often what).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import random

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from support import naive_scheduling as naive
from support.core_rules import NODES, Steps
from support.core_world import FakeNode, World, make_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.phases import WORKING, Phase
from smalltalk_fed.core.scheduling import matches
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import PeerError

INVARIANTS = (
    "no_unit_is_accepted_twice",
    "nobody_looks_at_its_own_work_or_twice_at_another_s",
    "who_is_out_has_nothing_and_waits_for_nothing",
    "only_liars_are_put_out",
    "nothing_rests_on_what_is_being_looked_at",
    "no_more_live_leases_than_allowed_copies",
    "hard_state_is_the_fold_of_the_journal",
    "open_units_are_those_that_nobody_has_finished",
    "free_units_are_the_open_ones_that_nobody_holds",
    "nobody_waits_for_what_is_there",
    "the_deadline_is_no_later_than_a_look_at_everything_says",
)


class Runs(Steps):
    """Four nodes, one of which may lie, and results that others look at."""

    @initialize(
        seed=st.booleans(),
        collect=st.sampled_from(["final", "never", "every 2 steps"]),
        rate=st.sampled_from([0.0, 1e-9, 0.5, 1.0]),
        redo_share=st.sampled_from([0.0, 0.05, 1.0]),
        liar=st.sampled_from(["", "a", "d"]),
    )
    def begin(self, seed: bool, collect: str, rate: float, redo_share: float, liar: str) -> None:
        expert = {"init": "seed" if seed else "fresh", "collect": collect, "steps": 50}
        audit = {"rate": rate, "first_units": 1, "wait_s": 12.0, "redo_share": redo_share}
        self.world = World(make_manifest(expert=expert, audit=audit))
        self.liar = liar if rate else ""
        self.nodes = [
            FakeNode(self.world, name, tokens_per_s=10.0**i).enrol().join()
            for i, name in enumerate("abcd")
        ]

    @rule(which=NODES, units=st.integers(1, 4), truly=st.booleans())
    def finish(self, which: int, units: int, truly: bool) -> None:
        """Do a few units on end."""
        node = self.node(which)
        node.lies = node.name == self.liar and not truly
        node.says = "it is bad" if node.lies else "what is true"
        self.finish_some(node, units)

    @rule(which=NODES, step=st.integers(1, 49))
    def collect(self, which: int, step: int) -> None:
        node = self.node(which)
        node.look()
        if node.unit and node.unit.unit_id.startswith("train_expert"):
            with contextlib.suppress(PeerError):
                node.beat(collected=node.state_at(max(step, node.unit.start_step + 1)))
            self.hear(node)

    @rule(which=NODES)
    def readmit(self, which: int) -> None:
        self.world.ask(msg.Readmit(self.node(which).node_id))

    @invariant()
    def nobody_looks_at_its_own_work_or_twice_at_another_s(self) -> None:
        state, leases = self.world.coordinator.state, self.world.coordinator.leases
        for audit in state.audits.values():
            spoke = [*audit.opinions.values(), *audit.wrong.values()]
            assert audit.node_id not in spoke
            assert len(spoke) == len(set(spoke))
            held = leases.by_unit.get(audit.key, [])
            assert not {lease.node_id for lease in held} & {audit.node_id, *spoke}
            assert len(held) <= 1

    @invariant()
    def who_is_out_has_nothing_and_waits_for_nothing(self) -> None:
        state, leases = self.world.coordinator.state, self.world.coordinator.leases
        for node in state.nodes.values():
            if node.quarantined:
                known = (leases.by_node, leases.waiting, leases.present)
                assert not [each for each in known if node.node_id in each]

    @invariant()
    def only_liars_are_put_out(self) -> None:
        for node in self.world.coordinator.state.nodes.values():
            assert not node.quarantined or node.name == self.liar

    @invariant()
    def nothing_rests_on_what_is_being_looked_at(self) -> None:
        state, jobs = self.world.coordinator.state, self.world.jobs
        for unit_id in state.unsettled:
            key = UnitKey.parse(unit_id)
            assert unit_id in state.finished
            if key.kind is UnitKind.ROUTER_ROUND:
                assert state.round <= key.index
            if key.kind is UnitKind.SHARD:
                assert state.segments is None
            assert state.phase in (*WORKING, Phase.PAUSED)
            assert state.phase is not Phase.EVALUATING
        assert not jobs or not state.unsettled

    @invariant()
    def no_more_live_leases_than_allowed_copies(self) -> None:
        leases = self.world.coordinator.leases
        for held in leases.by_unit.values():
            assert 1 <= len(held) <= 2
            assert all(leases.by_node[lease.node_id] is lease for lease in held)

    @invariant()
    def free_units_are_the_open_ones_that_nobody_holds(self) -> None:
        coordinator = self.world.coordinator
        state = coordinator.state
        dispatch = coordinator._dispatch
        free = set(naive.free_units(state, coordinator.leases))
        assert {*dispatch.free(), *dispatch.free_audits()} == free
        assert state.joined == sum(n.takes_part for n in state.nodes.values())
        assert set(state.unsettled) == {a.unit_id for a in state.audits.values() if not a.verdict}

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        coordinator, now = self.world.coordinator, self.world.now
        state, leases = coordinator.state, coordinator.leases
        if state.phase not in WORKING or now < leases.frozen_until:
            return
        free = naive.free_units(state, leases)
        assert not list(matches(state, leases, free, now))
        if not free:
            assert not naive.may_copy(state, leases, now)

    @invariant()
    def the_deadline_is_no_later_than_a_look_at_everything_says(self) -> None:
        coordinator, now = self.world.coordinator, self.world.now
        due = naive.deadline(coordinator.state, coordinator.leases, now)
        said = coordinator.deadline()
        assert due == math.inf or (said is not None and said <= due)

    def teardown(self) -> None:
        """If all nodes come back and lie no more, the run ends."""
        for node in self.nodes:
            node.lies, node.says = False, "what is true"
        super().teardown()


# How often a walk takes which step; the arguments are drawn from the rules' own ranges.
WEIGHTS = {
    "ask": 12, "finish": 50, "collect": 5, "pause_or_resume": 2, "lose_a_blob": 3, "fail": 4,
    "restart_node": 4, "readmit": 2, "leave": 4, "wait": 10, "restart_coordinator": 4,
}  # fmt: skip


def walk(seed: int, steps: int) -> World:
    """A seeded run of so many steps, checked after each, that is then brought to its end."""
    rng = random.Random(seed)
    runs = Runs()
    runs.begin(
        seed=rng.random() < 0.3,
        collect=rng.choice(["final", "never", "every 2 steps"]),
        rate=rng.choice([0.0, 1e-9, 0.5, 1.0, 1.0]),
        redo_share=rng.choice([0.0, 0.05, 1.0]),
        liar=rng.choice(["", "a", "d"]),
    )
    drawn = {
        "which": lambda: rng.randrange(4),
        "fraction": lambda: rng.choice([0.01, 0.1, 0.9]),
        "units": lambda: rng.randint(1, 4),
        "truly": lambda: rng.random() < 0.5,
        "step": lambda: rng.randint(1, 49),
        "seconds": lambda: rng.choice([0.1, 3.0, 11.0, 25.0]),
    }
    for _ in range(steps):
        name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        rule_of = getattr(runs, name)
        wanted = inspect.signature(rule_of).parameters
        rule_of(**{each: drawn[each]() for each in wanted})
        for invariant_of in INVARIANTS:
            getattr(runs, invariant_of)()
    runs.teardown()
    return runs.world
