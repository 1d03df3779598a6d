"""What nodes and a coordinator do under chance, in any run: steps and truths for Hypothesis.

A run's own machine says how it begins, and adds what only it has.
"""

from __future__ import annotations

import contextlib
import json

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.core_world import FakeNode, World

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import BlobLost, NodeQuarantined, UnitAccepted, UnitRejected
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.snapshot import from_json, to_json
from smalltalk_fed.errors import Forbidden, PeerError

NODES = st.integers(0, 3)  # fewer take it round


def sound(world: World) -> None:
    """Hard state is the fold of the journal, and survives a snapshot."""
    state = world.coordinator.state
    fresh = World(world.manifest)
    for event in world.journal:
        fresh.coordinator.apply(event)
    assert fresh.coordinator.state == state
    assert from_json(world.manifest, json.loads(json.dumps(to_json(state)))) == state


class Steps(RuleBasedStateMachine):
    """Nodes that work, stall, restart, repeat themselves; a coordinator that restarts."""

    world: World
    nodes: list[FakeNode]

    def node(self, which: int) -> FakeNode:
        """One of the nodes."""
        return self.nodes[which % len(self.nodes)]

    @rule(which=NODES, fraction=st.sampled_from([0.01, 0.1, 0.2, 0.9]))
    def ask(self, which: int, fraction: float) -> None:
        node = self.node(which)
        node.look()
        with contextlib.suppress(PeerError):
            node.beat(fraction) if node.unit else node.poll()
        self.hear(node)

    def hear(self, node: FakeNode) -> None:
        """Drop what the node is told to drop."""
        order = node.look()
        if order and node.unit and order.cancel == node.unit.unit_id:
            node.unit = order.unit

    def finish_some(self, node: FakeNode, units: int) -> None:
        """Do a few units on end."""
        for _ in range(units):
            with contextlib.suppress(PeerError):
                if not node.unit and not (node.question and node.look() is None):
                    node.poll()
                if node.unit:
                    node.done()
                node.look()

    @rule(which=NODES)
    def fail(self, which: int) -> None:
        node = self.node(which)
        node.look()
        if node.unit:
            failure = msg.Failure(node.unit.unit_id, "bad luck")
            node.unit = None
            with contextlib.suppress(PeerError):
                node.poll(failed=failure)

    @rule(which=NODES)
    def restart_node(self, which: int) -> None:
        self.begin_anew(self.node(which))

    def begin_anew(self, node: FakeNode) -> None:
        """The node's process is another one."""
        node.incarnation += 1
        node.unit, node.question = None, 0
        with contextlib.suppress(Forbidden):
            node.join()

    @rule(which=NODES)
    def leave(self, which: int) -> None:
        node = self.node(which)
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
            coordinator, now = self.world.coordinator, self.world.now
            digest = needed[which % len(needed)]
            self.world._settle(coordinator.blob_damaged(digest, "damaged", now))

    @rule(seconds=st.sampled_from([0.1, 3.0, 11.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def restart_coordinator(self) -> None:
        self.world.restart()
        for node in self.nodes:
            node.question = 0
            with contextlib.suppress(Forbidden):
                node.join()

    @invariant()
    def no_unit_is_accepted_twice(self) -> None:
        counts: set[str] = set()
        for event in self.world.journal:
            if isinstance(event, UnitAccepted):
                assert event.unit_id not in counts
                counts.add(event.unit_id)
            elif isinstance(event, UnitRejected | BlobLost):
                counts.discard(event.unit_id)
            elif isinstance(event, NodeQuarantined):
                counts -= set(event.undone)

    @invariant()
    def hard_state_is_the_fold_of_the_journal(self) -> None:
        sound(self.world)

    @invariant()
    def open_units_are_those_that_nobody_has_finished(self) -> None:
        state = self.world.coordinator.state
        assert set(state.open) == {k for k in state.phase_units() if not state.is_finished(k)}

    def teardown(self) -> None:
        """If all nodes come back and failures end, the run does."""
        for node in self.nodes:
            self.begin_anew(node)
        for _ in range(400):
            if self.world.coordinator.state.phase in (Phase.FINISHED, Phase.FAILED):
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
