"""The units of a tiny run, computed by what nodes compute them with, each distinct one once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.wire.signing import SigningKey, sign_result
from smalltalk_fed.worksite.work import Workplace, do_unit

Identity = tuple[object, ...]


def identity(unit: Unit) -> Identity:
    """All that a unit's output depends on, besides the manifest."""
    inputs = tuple((ref.name, ref.digest) for ref in unit.inputs)
    return (unit.unit_id, unit.start_step, unit.weights, unit.sample, unit.redo, *inputs)


@dataclass(frozen=True)
class UnitDone:
    """What came of a unit: outputs by name, figures, and weights collected on the way by step."""

    outputs: dict[str, bytes]
    figures: dict[str, float]
    states: dict[int, bytes]


@dataclass
class UnitDoer:
    """Does units; the same unit with the same inputs is computed once."""

    manifest: RunManifest
    corpus: TokenCorpus
    done: dict[Identity, UnitDone] = field(default_factory=dict)

    def do(self, unit: Unit, inputs: dict[str, bytes]) -> UnitDone:
        """Compute `unit`; `inputs` are bytes by name."""
        if identity(unit) not in self.done:
            with tempfile.TemporaryDirectory() as folder:
                self.done[identity(unit)] = self._compute(unit, inputs, Path(folder))
        return self.done[identity(unit)]

    def _compute(self, unit: Unit, inputs: dict[str, bytes], folder: Path) -> UnitDone:
        paths, states = {}, {}
        for name, data in inputs.items():
            paths[name] = folder / f"input-{name}"
            paths[name].write_bytes(data)

        def collect(step: int, path: Path) -> None:
            states[step] = path.read_bytes()
            path.unlink()

        place = Workplace(self.manifest, self.corpus, folder / "work", folder / "experts", "cpu")
        done = do_unit(unit, paths, place, lambda fraction, figures: None, collect, lambda: False)
        outputs = {
            name: source if isinstance(source, bytes) else source.read_bytes()
            for name, source in done.outputs.items()
        }
        return UnitDone(outputs, dict(done.figures), states)


def signed_result(
    key: SigningKey,
    run_id: str,
    node_id: str,
    unit: Unit,
    outputs: tuple[BlobRef, ...],
    figures: dict[str, float],
    incarnation: int = 1,
) -> Result:
    """What a node hands in."""
    result = Result(unit.unit_id, outputs, figures)
    return replace(result, signature=sign_result(key, run_id, node_id, incarnation, unit, result))
