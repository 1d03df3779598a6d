"""Each expert's training in parts: collected states and the finished one, step by step.

Rules: a part begins at step 0 or where an earlier collected state of the same training ends,
and ends later; the finished expert ends at the last step that the run asks of it. So every
step of an expert's order (a permutation of its segment a pass) is in its lineage once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core.units import UnitKey


def steps_of(manifest: RunManifest, sequences: float) -> int:
    """Optimizer steps that the expert of a segment of so many sequences takes."""
    section = manifest.config.expert
    steps = section.steps
    if section.init == "seed":
        steps -= min(max(1, round(section.seed_fraction * steps)), steps - 1)
    if manifest.config.assignment.capacity != "equal":
        steps = max(1, round(steps * (sequences * manifest.experts / manifest.train_sequences)))
    return steps


@dataclass
class ExpertParts:
    """The states collected of experts that are not finished."""

    manifest: RunManifest
    _steps: dict[str, set[int]] = field(default_factory=dict)  # unit -> steps collected

    def collected(self, event: ev.WeightsCollected) -> str:
        """Take a state part-way in; returns what is wrong, or nothing."""
        steps = self._steps.setdefault(event.unit_id, set())
        said = (event.figures.get("from_step"), event.figures.get("step"))
        wrong = self._part(event.unit_id, event.from_step, event.step)
        if said != (event.from_step, event.step):
            wrong = f"the state at step {event.step} is signed as another"
        elif steps and event.step <= max(steps):
            wrong = f"step {event.step} was collected after step {max(steps)}"
        steps.add(event.step)
        return wrong

    def cut(self, unit_id: str, begun: int | None) -> None:
        """A quarantined node's states, and what was built on them, count no more."""
        if begun is not None:
            self._steps[unit_id] = {step for step in self._steps.get(unit_id, ()) if step < begun}

    def finished(self, event: ev.UnitAccepted, segments: ev.SegmentsMade | None) -> str:
        """Take a finished expert in; returns what is wrong, or nothing."""
        begun, ended = event.figures.get("from_step", 0.0), event.figures.get("steps", 0.0)
        wrong = self._part(event.unit_id, begun, ended)
        self._steps.pop(event.unit_id, None)  # another training of it begins anew
        load = f"load_{UnitKey.parse(event.unit_id).expert}"
        sequences = segments.figures.get(load, 0.0) if segments else 0.0
        wanted = steps_of(self.manifest, sequences)
        if not wrong and segments and ended != wanted:
            wrong = f"it was trained up to step {ended:g} instead of {wanted}"
        return wrong

    def _part(self, unit_id: str, begun: float, ended: float) -> str:
        if begun and begun not in self._steps.get(unit_id, ()):
            return f"a part begins at step {begun:g}, where no collected state ends"
        if not begun < ended:
            return f"a part goes from step {begun:g} to {ended:g}"
        return ""
