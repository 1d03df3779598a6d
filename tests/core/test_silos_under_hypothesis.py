"""Private runs under chance: silos work, stall, fail, restart; the coordinator restarts.

Whatever comes in whatever order, hard state is the fold of the journal, units stay with the
node that has their text, steps come one after the other, and what is needed is not released.
"""

from __future__ import annotations

import contextlib
import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.core_world import World
from support.silo_world import private_manifest, silo, steps

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import BlobLost, UnitAccepted, UnitRejected
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.seats import node_of
from smalltalk_fed.core.snapshot import from_json, to_json
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.errors import PeerError

NODES = st.integers(0, 2)


class SiloRuns(RuleBasedStateMachine):
    """Three silos and a coordinator."""

    @initialize(share=st.sampled_from(["never", "operator", "public"]))
    def begin(self, share: str) -> None:
        self.world = World(private_manifest())
        self.nodes = [silo(self.world, name, share=share).join() for name in "abc"]

    @rule(which=NODES)
    def ask(self, which: int) -> None:
        node = self.nodes[which]
        node.look()
        with contextlib.suppress(PeerError):
            node.beat() if node.unit else node.poll()
        order = node.look()
        if order and node.unit and order.cancel == node.unit.unit_id:
            node.unit = None

    @rule(which=NODES, units=st.integers(1, 4))
    def finish(self, which: int, units: int) -> None:
        node = self.nodes[which]
        for _ in range(units):
            with contextlib.suppress(PeerError):
                if not node.unit and not (node.question and node.look() is None):
                    node.poll()
                if node.unit:
                    node.done()
                node.look()

    @rule(which=NODES)
    def fail(self, which: int) -> None:
        node = self.nodes[which]
        node.look()
        if node.unit:
            failure = msg.Failure(node.unit.unit_id, "bad luck")
            node.unit = None
            with contextlib.suppress(PeerError):
                node.poll(failed=failure)

    @rule(which=NODES)
    def restart_node(self, which: int) -> None:
        node = self.nodes[which]
        node.incarnation += 1
        node.unit, node.question = None, 0
        node.join()

    @rule(which=NODES)
    def leave(self, which: int) -> None:
        node = self.nodes[which]
        node.unit = None
        with contextlib.suppress(PeerError):
            self.world.ask(msg.Leave(node.node_id, node.incarnation))

    @rule()
    def pause_or_resume(self) -> None:
        paused = self.world.coordinator.state.phase is Phase.PAUSED
        with contextlib.suppress(PeerError):
            self.world.ask(msg.Resume() if paused else msg.Pause())

    @rule(which=st.integers(0, 99))
    def lose_a_blob(self, which: int) -> None:
        needed = sorted(needed_blobs(self.world.coordinator.state))
        if needed:
            digest, now = needed[which % len(needed)], self.world.now
            ready = self.world.coordinator.blob_damaged(digest, "damaged", now)
            self.world._settle(ready)

    @rule(seconds=st.sampled_from([0.1, 11.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def restart_coordinator(self) -> None:
        self.world.restart()
        for node in self.nodes:
            node.question = 0
            node.join()

    @invariant()
    def hard_state_is_the_fold_of_the_journal(self) -> None:
        fresh = World(self.world.manifest)
        for event in self.world.journal:
            fresh.coordinator.apply(event)
        state = self.world.coordinator.state
        assert fresh.coordinator.state == state
        assert from_json(self.world.manifest, json.loads(json.dumps(to_json(state)))) == state

    @invariant()
    def every_result_and_lease_is_of_the_node_that_has_the_text(self) -> None:
        state, leases = self.world.coordinator.state, self.world.coordinator.leases
        for unit_id, accepted in state.finished.items():
            assert accepted.node_id == node_of(state, UnitKey.parse(unit_id))
        for key, held in leases.by_unit.items():
            assert [lease.node_id for lease in held] == [node_of(state, key)]

    @invariant()
    def no_unit_is_accepted_twice(self) -> None:
        counts: set[str] = set()
        for event in self.world.journal:
            if isinstance(event, UnitAccepted):
                assert event.unit_id not in counts
                counts.add(event.unit_id)
            elif isinstance(event, UnitRejected | BlobLost):
                counts.discard(event.unit_id)

    @invariant()
    def steps_come_one_after_the_other(self) -> None:
        done = steps(self.world.journal)
        assert done == [(1, 0), (2, 0), (2, 1), (2, 2)][: len(done)]

    @invariant()
    def open_units_are_those_of_the_step(self) -> None:
        state = self.world.coordinator.state
        assert set(state.open) == {k for k in state.phase_units() if not state.is_finished(k)}
        if state.phase is not Phase.PAUSED:
            assert all(state.in_phase(key) for key in state.open)

    def teardown(self) -> None:
        """If all come back, the run ends."""
        for node in self.nodes:
            node.incarnation += 1
            node.unit, node.question = None, 0
            node.join()
        for _ in range(400):
            if self.world.coordinator.state.phase is Phase.FINISHED:
                return
            if self.world.coordinator.state.phase is Phase.PAUSED:
                self.world.ask(msg.Resume())
            for node in self.nodes:
                node.look()
                with contextlib.suppress(PeerError):
                    if node.unit:
                        node.done()
                    elif node.question == 0 or node.question in self.world.answers:
                        node.poll()
            self.world.advance(1.0)
        raise AssertionError(f"stuck in {self.world.coordinator.state.phase}")


TestSilos = SiloRuns.TestCase
TestSilos.settings = settings(
    max_examples=12,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
