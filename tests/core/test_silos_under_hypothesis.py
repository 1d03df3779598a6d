"""Private runs under chance: silos work, stall, fail, restart, withdraw; the coordinator restarts.

Whatever comes in whatever order, hard state is the fold of the journal, units stay with the
node that has their text, steps come one after the other, what is needed is not released, who
has left is asked for nothing, and the run ends while anybody is left.
"""

from __future__ import annotations

import contextlib
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from support.core_rules import NODES, Steps
from support.core_world import World
from support.silo_world import private_manifest, silo, steps

from smalltalk_fed.config.private import seat_of
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.core.handout import forms, unit
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.seats import node_of
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import PeerError


class SiloRuns(Steps):
    """Three silos and a coordinator."""

    @initialize(
        share=st.sampled_from(["never", "operator", "public"]),
        public=st.sampled_from([0, 25]),
        leavers=st.sets(st.integers(0, 3), max_size=2) | st.sets(st.integers(0, 3)),
        begun=st.integers(0, 12),
        at_once=st.booleans(),
    )
    def begin(self, share: str, public: int, leavers: set[int], begun: int, at_once: bool) -> None:
        """`leavers`: experts that may leave; `begun`: units that each silo has done by then.

        `at_once`: one of them leaves then.
        """
        self.world, self.leavers = World(private_manifest(public)), sorted(leavers)
        self.nodes = [silo(self.world, name, share=share).join() for name in "abc"]
        for _ in range(begun):
            for which in range(3):
                self.finish(which, 1)
        if at_once and self.leavers:
            self.withdraw(begun, True)

    @rule(which=NODES, units=st.integers(1, 4))
    def finish(self, which: int, units: int) -> None:
        self.finish_some(self.node(which), units)

    @rule(units=st.integers(1, 3))
    def all_finish(self, units: int) -> None:
        for _ in range(units):
            for which in range(3):
                self.finish(which, 1)

    @precondition(lambda self: self.leavers)
    @rule(which=st.integers(0, 3), by_owner=st.booleans())
    def withdraw(self, which: int, by_owner: bool) -> None:
        expert = self.leavers[which % len(self.leavers)]
        node = self.nodes[seat_of(self.world.manifest.config, expert)]
        with contextlib.suppress(PeerError):
            self.world.ask(msg.Withdraw((expert,), node.node_id if by_owner else "", by_owner))

    @invariant()
    def every_result_and_lease_is_of_the_node_that_has_the_text(self) -> None:
        state, leases = self.world.coordinator.state, self.world.coordinator.leases
        for unit_id, accepted in state.finished.items():
            key = UnitKey.parse(unit_id)
            assert key.kind is UnitKind.SHARD or accepted.node_id == node_of(state, key)
        for key, held in leases.by_unit.items():
            holders = [lease.node_id for lease in held]
            assert key.kind is UnitKind.SHARD or holders == [node_of(state, key)]

    @invariant()
    def steps_come_one_after_the_other(self) -> None:
        done = steps(self.world.journal)
        assert done == [(1, 0), (2, 0), (2, 1), (2, 2)][: len(done)]

    @invariant()
    def a_count_is_never_asked_for_twice(self) -> None:
        """Under noise each would cost its silo again."""
        counts = Counter(
            event.unit_id
            for event in self.world.journal
            if isinstance(event, UnitAccepted) and event.unit_id.startswith("count")
        )
        lost = {event.unit_id for event in self.world.journal if hasattr(event, "digest")}
        assert all(n == 1 for unit_id, n in counts.items() if unit_id not in lost)

    @invariant()
    def units_in_work_are_of_the_phase(self) -> None:
        state = self.world.coordinator.state
        if state.phase is not Phase.PAUSED:
            assert all(state.in_phase(key) for key in state.open)

    @invariant()
    def what_is_handed_out_is_here_and_of_nobody_who_left(self) -> None:
        state = self.world.coordinator.state
        if state.phase is Phase.PAUSED:
            return
        needed, config = needed_blobs(state), self.world.manifest.config
        for key in state.open:
            given = unit(state, key)
            assert {ref.digest for ref in given.inputs} <= set(needed)
            # Of who left only the router that its own silo's text was divided by.
            for e in state.withdrawn:
                of_mate = key.expert >= 0 and seat_of(config, e) == seat_of(config, key.expert)
                assert given.input(f"weights-{e}") is None
                assert given.input(f"router-{e}") is None or of_mate
            own = [e for e in range(4) if seat_of(config, e) == key.seat]
            assert key.seat < 0 or set(own) - set(state.withdrawn)

    @invariant()
    def counts_and_slices_in_work_are_known_as_they_were_handed_out(self) -> None:
        """Or what comes of them would be refused, and a silo asked again."""
        state, leases = self.world.coordinator.state, self.world.coordinator.leases
        for node in self.nodes:
            lease, there = leases.by_node.get(node.node_id), node.unit
            at_it = there and lease and lease.key == there.key and there.key in state.open
            if there and at_it and there.key.kind in (UnitKind.COUNT, UnitKind.SHARD):
                assert there in forms(state, there.key, there.start_step)

    @invariant()
    def of_a_silo_that_left_no_router_is_needed(self) -> None:
        state, config = self.world.coordinator.state, self.world.manifest.config
        names = {ref.name for ref in needed_blobs(state).values()}
        staying = {seat_of(config, e) for e in range(4) if e not in state.withdrawn}
        for e in state.withdrawn:
            assert seat_of(config, e) in staying or f"router-{e}" not in names

    @invariant()
    def what_is_needed_is_not_released(self) -> None:
        assert not set(self.world.released) & set(needed_blobs(self.world.coordinator.state))

    def teardown(self) -> None:
        """If all come back, the run ends well, unless every expert left before any was trained."""
        super().teardown()
        self.hard_state_is_the_fold_of_the_journal()
        self.steps_come_one_after_the_other()
        self.what_is_needed_is_not_released()
        state = self.world.coordinator.state
        nobody = len(state.withdrawn) == state.experts
        assert state.phase is Phase.FINISHED or nobody
        assert len(steps(self.world.journal)) == 4 or nobody


TestSilos = SiloRuns.TestCase
TestSilos.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
