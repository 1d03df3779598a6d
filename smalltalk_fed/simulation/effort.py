"""How much work a unit is, in seconds of the reference node."""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.redos import SCORED
from smalltalk_fed.core.units import HELDOUT, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import OurError

_BACKWARD = 3  # training on a sequence costs so many times what scoring it does
_SCORED = 7  # parts of an audit's sample, each as large, that are scored


@dataclass(frozen=True)
class Effort:
    """Seconds of the reference node for a unit of each kind (an expert: from step 0 on)."""

    router_round_s: float
    shard_s: float
    expert_s: float
    evaluate_s: float
    job_s: float  # the coordinator's own computations

    def of(self, unit: Unit, manifest: RunManifest) -> float:
        """Seconds that `unit` takes on the reference node, from its first step on."""
        steps = manifest.config.expert.steps
        match unit.key.kind:
            case UnitKind.ROUTER_ROUND:
                return self.router_round_s
            case UnitKind.SHARD:
                return self.shard_s
            case UnitKind.TRAIN_EXPERT:
                return self.expert_s * (steps - unit.start_step) / steps
            case UnitKind.TRAIN_SEED:
                return self.expert_s
            case UnitKind.EVALUATE:
                return self.evaluate_s
            case UnitKind.AUDIT:
                return self._audit_s(unit, manifest)
            case UnitKind.SILO_BLOCK | UnitKind.COUNT | UnitKind.EVALUATE_SILO:
                raise OurError(f"{unit.unit_id} in a simulated world, which has no silos")

    def _audit_s(self, unit: Unit, manifest: RunManifest) -> float:
        """A sample instead of the whole; no training, but for rounds that are trained again."""
        config, sample = manifest.config, manifest.config.audit.sample_sequences
        target = UnitKey.parse(unit.key.target)
        match target.kind:
            case UnitKind.ROUTER_ROUND:
                chunk = config.router.chunk_sequences
                training = _BACKWARD * chunk / manifest.experts
                again = training + (SCORED - _SCORED) * sample if unit.redo else 0.0
                return self.router_round_s * min(
                    1.0, (_SCORED * sample + again) / (chunk + training)
                )
            case UnitKind.SHARD:
                start, stop = 0, manifest.heldout_sequences
                if target.index != HELDOUT:
                    start, stop = manifest.shard_range(target.index)
                return self.shard_s * min(1.0, sample / max(1, stop - start))
            case _:
                whole = _BACKWARD * config.expert.steps * config.expert.batch_sequences
                return self.expert_s * min(1.0, _SCORED * sample / whole)
