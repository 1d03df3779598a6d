"""One work unit on this machine: inputs from files, the computation, outputs to files.

Rules: what a unit computes is `smalltalk_fed.train`'s part; here its inputs are decoded and
bounded and its outputs named as the coordinator expects them; units over this node's own text
are `silo_work`'s. Nobody is talked to. torch is
imported when the first unit begins. Large weights stay files: a unit's working folder keeps
checkpoints, so that a unit that was cut off goes on; finished experts are kept whole, as
folders that `transformers` loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.model_config import CONFIG_BYTES_MAX, model_config
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.units import HELDOUT, BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import Refused, TooLarge, WorldError
from smalltalk_fed.worksite.folders import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Workplace,
    expert_folder,
    metrics_folder,
    unit_folder,
)
from smalltalk_fed.worksite.silo_work import SiloWork, weights_may_leave
from smalltalk_fed.worksite.unit_inputs import UnitInputs

Output = bytes | Path
OnProgress = Callable[[float, dict[str, float]], None]
OnState = Callable[[int, Path], None]


@dataclass(frozen=True)
class Done:
    """Outputs by name, in the order that the coordinator expects, and the figures."""

    outputs: dict[str, Output]
    figures: dict[str, float]


def needed(place: Workplace, unit: Unit, ref: BlobRef) -> bool:
    """Whether an input must be fetched: who trained an expert further needs no earlier state."""
    if ref.name != "state" or unit.key.kind is not UnitKind.TRAIN_EXPERT:
        return True
    from smalltalk_fed.train.lineage import Start, own_training

    start = Start(unit.start_step, ref.digest)
    return own_training(unit_folder(place, unit), start) is None


def do_unit(
    unit: Unit,
    inputs: dict[str, Path],
    place: Workplace,
    on_progress: OnProgress,
    on_state: OnState,
    should_stop: Callable[[], bool],
) -> Done:
    """Compute `unit`; `inputs` are its inputs' files by name, all that are `needed`.

    `on_state` hears of the files of an unfinished expert's weights, where the run collects
    them; each is the caller's to remove, and the next one comes only after that.

    Raises:
        Malformed, Refused: an input can't be used.
        WorldError: the disk refuses.
        smalltalk_fed.train.plan.Stopped: `should_stop` said so.
    """
    from smalltalk_fed.train.device import choose_device

    device = str(choose_device(place.device))
    files = UnitInputs(place.manifest, unit, inputs)
    work = _Work(unit, files, place, device, on_progress, on_state, should_stop)
    match unit.key.kind:
        case UnitKind.ROUTER_ROUND:
            return work.router_round()
        case UnitKind.SHARD:
            return work.shard()
        case UnitKind.TRAIN_SEED:
            return work.train_seed()
        case UnitKind.TRAIN_EXPERT:
            return work.train_expert()
        case UnitKind.EVALUATE:
            return work.evaluate()
        case UnitKind.AUDIT:
            return work.audit()
        case UnitKind.SILO_BLOCK:
            parameters, figures = work.silo().block()
            return Done(dict(parameters), figures)
        case UnitKind.COUNT:
            counts, figures = work.silo().count()
            return Done({"counts": counts}, figures)
        case UnitKind.EVALUATE_SILO:
            return Done({}, work.silo().evaluate())


@dataclass(frozen=True)
class _Work:
    unit: Unit
    inputs: UnitInputs
    place: Workplace
    device: str
    on_progress: OnProgress
    on_state: OnState
    should_stop: Callable[[], bool]

    @property
    def manifest(self) -> RunManifest:
        return self.place.manifest

    def router_round(self) -> Done:
        from smalltalk_fed.train.units import router_round

        key = self.unit.key
        result = router_round(
            self.manifest,
            self.place.corpus,
            key.expert,
            key.index,
            self.inputs.data_if_any("parameters"),
            self.inputs.ids("share"),
            work_folder=self._folder(),
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        outputs: dict[str, Output] = {"parameters": result.parameters}
        if result.score_block is not None:
            outputs["scores"] = result.score_block
        return Done(outputs, result.figures)

    def shard(self) -> Done:
        from smalltalk_fed.train.units import shard

        heldout = self.unit.key.index == HELDOUT
        result = shard(
            self.manifest,
            self.place.public or self.place.corpus,
            self.inputs.routers_left(),
            self.unit.key.index,
            weights=self.unit.weights,
            heldout=heldout,
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return Done({"experts": result.experts}, result.figures)

    def train_seed(self) -> Done:
        weights, figures = self._train("seed")
        return Done({"weights": weights}, figures)

    def train_expert(self) -> Done:
        if is_private(self.manifest):
            weights, figures = self.silo().train()
            return self._trained(weights, figures, gives=weights_may_leave(self.place))
        from smalltalk_fed.train.lineage import Start

        state = self.unit.input("state")
        start = Start(self.unit.start_step, state.digest if state else "")
        weights, figures = self._train(
            "expert",
            expert=self.unit.key.expert,
            segment_ids=self.inputs.ids("segment"),
            seed_parameters=self.inputs.files.get("seed"),
            start=start,
            state=self.inputs.files.get("state"),
        )
        return self._trained(weights, figures, gives=self.manifest.config.expert.collects)

    def evaluate(self) -> Done:
        from smalltalk_fed.train.evaluation import evaluate_expert

        expert_N = self.inputs.experts("routed")
        kept = expert_folder(self.place, self.unit) / WEIGHTS_FILE
        weights = self.inputs.files.get("weights") or kept
        if not weights.exists():
            raise Refused(f"this node does not have the weights of expert {self.unit.key.expert}")
        figures = evaluate_expert(
            self.manifest,
            self.place.corpus,
            weights,
            np.flatnonzero(expert_N == self.unit.key.expert),
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return Done({}, figures)

    def audit(self) -> Done:
        from smalltalk_fed.train.audit import Auditor

        inputs, target = self.inputs, UnitKey.parse(self.unit.key.target)
        auditor = Auditor(
            self.manifest,
            self.place.corpus,
            target,
            self.unit.sample,
            self.device,
            self.should_stop,
            self.unit.redo,
        )
        match target.kind:
            case UnitKind.ROUTER_ROUND:
                before, after = inputs.data_if_any("before"), inputs.data("parameters")
                opinion = auditor.router_round(before, after, inputs.ids("share"))
            case UnitKind.SHARD:
                opinion = auditor.shard(inputs.routers())
            case _:
                routed = "routed" in inputs.files
                opinion = auditor.expert(
                    inputs.file("weights"),
                    inputs.routers(),
                    inputs.ids("segment"),
                    inputs.experts("routed") if routed else np.zeros(0, np.int32),
                )
        return Done({"audit": opinion}, {})

    # -------------------------------------------------------------------------------- small

    def silo(self) -> SiloWork:
        """This unit as one over this node's own text."""
        inputs = (self.unit, self.inputs, self.place, self.device)
        return SiloWork(*inputs, self.on_progress, self.should_stop)

    def _trained(self, weights: Path, figures: dict[str, float], *, gives: bool) -> Done:
        """Keep the finished expert; `gives`: its weights are handed in, too."""
        config = expert_config(self.manifest)
        kept = self._keep_expert(weights, config)
        return Done({"config": config, "weights": kept} if gives else {}, figures)

    def _train(self, kind: Literal["seed", "expert"], **more: Any) -> tuple[Path, dict[str, float]]:
        from smalltalk_fed.train.group import train_on_node
        from smalltalk_fed.train.inputs import TrainInputs

        inputs = TrainInputs(kind, self.manifest, self.place.corpus, self._folder(), **more)
        return train_on_node(
            inputs,
            device=self.place.device,
            on_progress=self.on_progress,
            on_state=self.on_state,
            should_stop=self.should_stop,
            metrics_folder=metrics_folder(self.place, self.unit),
        )

    def _folder(self) -> Path:
        """Of this unit's checkpoints."""
        return unit_folder(self.place, self.unit)

    def _keep_expert(self, weights: Path, config: bytes) -> Path:
        folder = expert_folder(self.place, self.unit)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG_FILE).write_bytes(config)
            return weights.replace(folder / WEIGHTS_FILE)
        except OSError as error:
            raise WorldError(f"{folder} can't be written ({error.strerror or error}).") from error


def expert_config(manifest: RunManifest) -> bytes:
    """config.json of this run's experts, the same bytes on every node."""
    config = manifest.config
    if config.expert.init not in ("fresh", "seed"):
        data = (Path(config.expert.init) / CONFIG_FILE).read_bytes()
        if len(data) > CONFIG_BYTES_MAX:
            raise TooLarge(f"{config.expert.init}/{CONFIG_FILE} is over {CONFIG_BYTES_MAX} bytes")
        return data
    table = model_config(config.expert.model, manifest.vocabulary, config.sequence.length)
    return json.dumps(table, indent=2, sort_keys=True).encode() + b"\n"
