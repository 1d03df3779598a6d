"""The units of a tiny run, computed by what nodes compute them with, each distinct one once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from smalltalk_node.work import Workplace, do_unit

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.wire.signing import SigningKey, sign_result

Outputs = dict[str, bytes]
Identity = tuple[object, ...]


def identity(unit: Unit) -> Identity:
    """All that a unit's output depends on, besides the manifest."""
    return (unit.unit_id, unit.start_step, unit.weights, *((r.name, r.digest) for r in unit.inputs))


@dataclass
class UnitDoer:
    """Does units; the same unit with the same inputs is computed once."""

    manifest: RunManifest
    corpus: TokenCorpus
    done: dict[Identity, tuple[Outputs, dict[str, float]]] = field(default_factory=dict)

    def do(self, unit: Unit, inputs: dict[str, bytes]) -> tuple[Outputs, dict[str, float]]:
        """Outputs by name and the figures; `inputs` are bytes by name."""
        if identity(unit) not in self.done:
            with tempfile.TemporaryDirectory() as folder:
                self.done[identity(unit)] = self._compute(unit, inputs, Path(folder))
        return self.done[identity(unit)]

    def _compute(
        self, unit: Unit, inputs: dict[str, bytes], folder: Path
    ) -> tuple[Outputs, dict[str, float]]:
        paths = {}
        for name, data in inputs.items():
            paths[name] = folder / f"input-{name}"
            paths[name].write_bytes(data)
        place = Workplace(self.manifest, self.corpus, folder / "work", folder / "experts", "cpu")
        done = do_unit(
            unit,
            paths,
            place,
            lambda fraction, figures: None,
            lambda path, step: None,
            lambda: False,
        )
        outputs = {
            name: source if isinstance(source, bytes) else source.read_bytes()
            for name, source in done.outputs.items()
        }
        return outputs, dict(done.figures)


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
