"""What a node's process computes, as time: fetch, compute with progress, upload.

Rules: one unit at a time. Progress is worked out when somebody asks, so a month of training
is a handful of events. Experts and the seed model leave checkpoints on the machine's disk at
intervals, all other units begin anew. Where the run collects weights every N steps they are
uploaded beside the computation. Nothing is said here: the process hands results to its
session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smalltalk_fed.core.catalogue import LONG, outputs_of
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKind
from smalltalk_fed.simulation.contents import mean_share, output_refs, state_ref

if TYPE_CHECKING:
    from smalltalk_fed.simulation.machine import Machine


@dataclass(frozen=True)
class Checkpoint:
    """What a machine's disk has of a unit: how far it is, and from which step it came."""

    fraction: float
    from_step: int


class Work:
    """The unit at hand of one process, if there is one."""

    def __init__(
        self,
        machine: Machine,
        done: Callable[[Result], None],
        failed: Callable[[str, str], None],
        collected: Callable[[Result], None],
    ) -> None:
        self._machine, self._world, self._shared = machine, machine.world, machine.shared
        self._done, self._failed, self._collected = done, failed, collected
        self.unit: Unit | None = None
        self._turn = 0  # events of an earlier unit or stint don't count
        self._total_s = 1.0  # of the reference node, from step 0 to the end
        self._position_s = 0.0  # how much of it is done
        self._computing_since: float | None = None
        self._since = 0.0
        self._from_step = 0  # the step that this lineage was handed out at
        self._uploading_state = False

    # -------------------------------------------------------------------------- for the process

    def start(self, unit: Unit) -> None:
        """Begin `unit`, or go on where this machine's disk has it."""
        self.unit, machine = unit, self._machine
        manifest = self._shared.scenario.manifest
        steps = manifest.config.expert.steps
        self._turn += 1
        self._since = self._world.now
        whole = Unit(unit.key, unit.inputs, redo=unit.redo)
        reference_s = self._shared.scenario.work.of(whole, manifest)
        self._total_s = max(reference_s * mean_share(manifest, unit), 1e-3)
        begun = Checkpoint(unit.start_step / steps, unit.start_step)
        kept = machine.disk.get(unit.unit_id, begun)
        # Checkpoints on top of weights that count no more are of another training.
        ours = kept.from_step <= unit.start_step and kept.fraction > begun.fraction
        begun = kept if ours else begun
        self._position_s, self._from_step = begun.fraction * self._total_s, begun.from_step
        self._fetch(self._turn)

    def stop(self, *, clean: bool) -> None:
        """Stop; a clean stop leaves a checkpoint of this very moment."""
        if self.unit is None:
            return
        self._pause(clean=clean)
        self.unit = None

    def freeze(self) -> None:
        """The machine sleeps: nothing is lost, nothing goes on."""
        if self.unit is not None:
            position_s = self._pause(clean=True)
            self._position_s = position_s

    def thaw(self) -> None:
        """The machine wakes."""
        if self.unit is not None:
            self._turn += 1
            self._since = self._world.now
            self._fetch(self._turn)

    @property
    def fraction(self) -> float:
        """How much of the unit is done, 0..1."""
        return min(1.0, self._now_at() / self._total_s)

    # -------------------------------------------------------------------------------- stages

    def _fetch(self, turn: int) -> None:
        assert self.unit is not None
        missing = [ref for ref in self.unit.inputs if ref.digest not in self._machine.cache]
        size = sum(ref.size for ref in missing)
        if not missing:
            self._compute(turn)
            return

        def here() -> None:
            if turn != self._turn or self.unit is None:
                return
            for ref in missing:
                if ref.digest not in self._shared.blobs.sizes:
                    self._fail(f"the coordinator has no blob {ref.digest[:12]}")
                    return
                self._machine.cache[ref.digest] = None
            self._compute(turn)

        self._machine.line.transfer(size, up=False, then=here)

    def _compute(self, turn: int) -> None:
        machine, unit = self._machine, self.unit
        assert unit is not None
        self._computing_since = self._world.now
        left_s = (self._total_s - self._position_s) / machine.speed
        self._world.after(left_s, self._computed, turn)
        every = self._shared.scenario.manifest.config.expert.collect_every_steps
        if every and unit.key.kind is UnitKind.TRAIN_EXPERT:
            self._plan_collection(turn)
        machine.at_computation(unit, left_s)

    def _plan_collection(self, turn: int) -> None:
        config = self._shared.scenario.manifest.config.expert
        step = int(self._now_at() / self._total_s * config.steps + 1e-6)
        following = (step // config.collect_every_steps + 1) * config.collect_every_steps
        if following < config.steps:
            at_s = following / config.steps * self._total_s
            self._world.after(
                (at_s - self._now_at()) / self._machine.speed, self._collect, turn, following
            )

    def _collect(self, turn: int, step: int) -> None:
        unit = self.unit
        if turn != self._turn or unit is None:
            return
        self._plan_collection(turn)
        if self._uploading_state:
            return  # the line is slower than the training
        ref = state_ref(self._shared.scenario.manifest, unit, step)
        self._uploading_state = True

        def there() -> None:
            self._uploading_state = False
            if turn == self._turn and self.unit is not None:
                self._shared.blobs.put(ref)
                figures = {"step": float(step), "from_step": float(self._from_step)}
                self._collected(Result(unit.unit_id, (ref,), figures))

        self._machine.line.transfer(ref.size, up=True, then=there)

    def _computed(self, turn: int) -> None:
        unit, machine = self.unit, self._machine
        if turn != self._turn or unit is None:
            return
        self._count(self._total_s)
        self._position_s, self._computing_since = self._total_s, None
        if unit.key.kind in LONG:
            machine.disk[unit.unit_id] = Checkpoint(1.0, self._from_step)
        names = outputs_of(self._shared.scenario.manifest, unit.key)
        refs = output_refs(self._shared.scenario.manifest, unit, names)
        refs = machine.honestly_or_not(unit, refs)
        new = [ref for ref in refs if ref.digest not in self._shared.blobs.sizes]
        for ref in refs:
            if ref.name == "parameters" or (ref.name == "weights" and unit.key.kind in LONG):
                machine.cache[ref.digest] = None
        machine.at_upload(unit)

        def there() -> None:
            if turn == self._turn and self.unit is not None:
                for ref in refs:
                    self._shared.blobs.put(ref)
                self._hand_in(refs)

        machine.line.transfer(sum(ref.size for ref in new), up=True, then=there)

    def _hand_in(self, refs: tuple[BlobRef, ...]) -> None:
        unit = self.unit
        assert unit is not None
        self._busy()
        self._turn += 1
        self.unit = None
        self._machine.at_result(unit)
        figures = {"tokens_per_s": self._machine.tokens_per_s}
        if unit.key.kind is UnitKind.TRAIN_EXPERT:
            figures["from_step"] = float(self._from_step)
        self._done(Result(unit.unit_id, refs, figures))

    def _fail(self, reason: str) -> None:
        unit = self.unit
        assert unit is not None
        self.stop(clean=False)
        self._failed(unit.unit_id, reason)

    # ---------------------------------------------------------------------------------- small

    def _now_at(self) -> float:
        if self._computing_since is None:
            return self._position_s
        elapsed_s = self._world.now - self._computing_since
        return self._position_s + elapsed_s * self._machine.speed

    def _pause(self, *, clean: bool) -> float:
        """End this stint; returns where it was. What a checkpoint has is on the disk."""
        unit = self.unit
        assert unit is not None
        position_s = min(self._now_at(), self._total_s)
        self._count(position_s)
        if unit.key.kind in LONG:
            kept_s = position_s
            if not clean and self._computing_since is not None:
                every_s = self._shared.scenario.manifest.config.compute.checkpoint_s
                elapsed_s = self._world.now - self._computing_since
                whole_s = elapsed_s // every_s * every_s
                kept_s = self._position_s + whole_s * self._machine.speed
            fraction = min(1.0, kept_s / self._total_s)
            self._machine.disk[unit.unit_id] = Checkpoint(fraction, self._from_step)
        self._busy()
        self._turn += 1
        self._computing_since, self._uploading_state = None, False
        return position_s

    def _count(self, until_s: float) -> None:
        if self._computing_since is not None:
            done_s = max(0.0, until_s - self._position_s)
            self._shared.measures.work_done += done_s
            if self.unit is not None and self.unit.key.kind is UnitKind.AUDIT:
                self._shared.measures.audit_work += done_s

    def _busy(self) -> None:
        self._shared.measures.busy_s += self._world.now - self._since
