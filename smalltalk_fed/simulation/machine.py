"""A volunteer's machine: what outlives the processes on it, and what befalls them.

Rules: the machine has an identity, a speed, a line and a disk with checkpoints; its process
may be killed, stopped or put to sleep, and a new one is a new incarnation. Faults that are
addressed by "its nth unit" are carried out here. A program that ends by an error is started
again after a minute, as a service manager would; one that is told that the run is over, or
that it is quarantined, not. A liar's results are other ones than they should be (`liars.py`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from smalltalk_fed.core.units import BlobRef, Unit
from smalltalk_fed.simulation.contents import Blobs
from smalltalk_fed.simulation.faults import Fault, NodeCrash, NodeLeaves, UnitFails, UnitPoint
from smalltalk_fed.simulation.liars import lie_in
from smalltalk_fed.simulation.measures import Measures
from smalltalk_fed.simulation.network import Network
from smalltalk_fed.simulation.node_process import NodeProcess
from smalltalk_fed.simulation.node_work import Checkpoint
from smalltalk_fed.simulation.scenario import Scenario, draw_speed
from smalltalk_fed.simulation.world import World

_RESTART_S = 60.0
_TOKENS_PER_S = 10_000.0  # of the reference node


@dataclass
class Shared:
    """What all machines of a world have in common."""

    scenario: Scenario
    network: Network
    blobs: Blobs
    measures: Measures
    secret: str  # of the one invitation, as a digest
    ended: int = 0  # machines that were told that the run is over


class Machine:
    """One machine, for good."""

    def __init__(
        self, world: World, shared: Shared, number: int, faults: list[Fault], lies: str = ""
    ) -> None:
        self.lies = lies
        self.world, self.shared, self.number = world, shared, number
        self.name = f"machine-{number}"
        self.key_sha256 = hashlib.sha256(f"key of {self.name}".encode()).hexdigest()
        self.signing_key = hashlib.sha256(self.name.encode()).digest()
        self.node_id = ""
        self.speed = draw_speed(world, number) if shared.scenario.fleet.spread else 1.0
        self.line = shared.network.line(number)
        self.rng = world.stream("machine", number)
        self.disk: dict[str, Checkpoint] = {}  # by unit
        self.cache: dict[str, None] = {}  # digests of blobs that are at hand
        self.process: NodeProcess | None = None
        self.on = self.over = False
        self._incarnation = 0
        self._units = 0
        self._faults = faults
        self._on_since = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed as it is told to the coordinator."""
        return self.speed * _TOKENS_PER_S

    # ---------------------------------------------------------------------------- on and off

    def switch_on(self) -> None:
        """Power on; the program starts with the machine."""
        if self.on or self.over:
            return
        self.on, self._on_since = True, self.world.now
        self._start()

    def switch_off(self, *, clean: bool) -> None:
        """Power off: the program is stopped in good order, or not."""
        if not self.on:
            return
        self.world.note(f"{self.name} {'stops' if clean else 'is gone'}")
        self.on = False
        if self.process is None or not self.process.asleep:
            self._count_presence()
        if self.process is not None:
            self.process.die(clean=clean)
            self.process = None

    def sleep(self) -> None:
        """The program's process stands still."""
        if self.process is not None and self.process.alive and not self.process.asleep:
            self.world.note(f"{self.name} sleeps")
            self._count_presence()
            self.process.sleep()

    def wake(self) -> None:
        """And goes on."""
        if self.process is not None and self.process.alive and self.process.asleep:
            self.world.note(f"{self.name} wakes")
            self._on_since = self.world.now
            self.process.wake()

    def restart_in(self, down_s: float, *, clean: bool = False) -> None:
        """The program is stopped, and started again later; never, if that is infinite."""
        self.switch_off(clean=clean)
        if math.isfinite(down_s):
            self.world.after(down_s, self.switch_on)

    def ended(self, reason: str) -> None:
        """The program ended by itself."""
        self.world.note(f"{self.name} ends: {reason}")
        self.process = None
        if reason.startswith("the run is") or "is quarantined" in reason:
            self.over = True  # its operator is asked to do something
            self.shared.ended += 1
            self.on = False
            self._count_presence()
        else:
            self.world.after(_RESTART_S, self._start)

    def settle(self) -> None:
        """The world ends: time that is still running counts up to now."""
        if self.on and self.process is not None and not self.process.asleep:
            self._count_presence()
            self.process.work.stop(clean=True)

    def _count_presence(self) -> None:
        self.shared.measures.present_s += self.world.now - self._on_since

    def _start(self) -> None:
        if not self.on or (self.process is not None and self.process.alive):
            return
        self._incarnation += 1
        self.shared.measures.node_starts += 1
        self.process = NodeProcess(self, self._incarnation)
        self.process.begin()

    # --------------------------------------------------------------- faults at logical points

    def must_fail(self, unit: Unit) -> bool:
        """Whether the unit that begins now can't be done; it counts as the nth, too."""
        self._units += 1
        return any(isinstance(f, UnitFails) and f.unit == self._units for f in self._faults)

    def honestly_or_not(self, unit: Unit, refs: tuple[BlobRef, ...]) -> tuple[BlobRef, ...]:
        """The outputs that it hands in for those that it should."""
        lie = lie_in(self.lies, unit, self._units - 1, self.shared.scenario.liars)
        if not lie:
            return refs
        return tuple(self.shared.blobs.lie(ref, lie, self.name) for ref in refs)

    def at_computation(self, unit: Unit, left_s: float) -> None:
        """The computation begins and would take `left_s`."""
        for fault in self._faults:
            match fault:
                case NodeCrash(point=UnitPoint.COMPUTING) if fault.unit == self._units:
                    self._plan(fault, fault.fraction * left_s, clean=False)
                case NodeLeaves() if fault.unit == self._units:
                    self._plan(fault, fault.fraction * left_s, clean=True)

    def at_upload(self, unit: Unit) -> None:
        """The computation is done, nothing is uploaded."""
        self._crash(UnitPoint.COMPUTED)

    def at_result(self, unit: Unit) -> None:
        """The result is about to be said."""
        self._crash(UnitPoint.UPLOADED)

    def _crash(self, point: UnitPoint) -> None:
        for fault in self._faults:
            if isinstance(fault, NodeCrash) and fault.point is point and fault.unit == self._units:
                self._plan(fault, 0.0, clean=False)

    def _plan(self, fault: NodeCrash | NodeLeaves, delay_s: float, *, clean: bool) -> None:
        self._faults = [other for other in self._faults if other is not fault]
        process, units = self.process, self._units

        def strike() -> None:
            if self.process is process and self._units == units:
                self.restart_in(fault.down_s, clean=clean)

        self.world.after(delay_s, strike)
