"""One work unit on this machine: inputs from files, the computation, outputs to files.

Rules: what a unit computes is `smalltalk_fed.train`'s part; here its inputs are decoded and
bounded and its outputs named as the coordinator expects them. Nobody is talked to. torch is
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
from smalltalk_fed.core.units import HELDOUT, BlobRef, Unit, UnitKind
from smalltalk_fed.errors import Malformed, Refused, TooLarge, WorldError
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids
from smalltalk_node.folders import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Workplace,
    expert_folder,
    metrics_folder,
    unit_folder,
)

Output = bytes | Path
OnProgress = Callable[[float, dict[str, float]], None]
OnState = Callable[[int, Path], None]


@dataclass(frozen=True)
class Done:
    """Outputs by name, in the order that the coordinator expects, and the figures."""

    outputs: dict[str, Output]
    figures: dict[str, float]


def input_limit(manifest: RunManifest, name: str) -> int:
    """Largest input of this name in bytes, as the manifest implies; 0 for names that none has."""
    chunk = manifest.config.router.chunk_sequences
    match name:
        case "share":
            return 64 + 8 * chunk
        case "segment":
            return 64 + 8 * manifest.train_sequences
        case "routed":
            return 64 + 2 * manifest.heldout_sequences
        case "config":
            return CONFIG_BYTES_MAX
        case "weights" | "seed" | "state":
            return manifest.expert_blob_bytes_max
        case _ if name == "parameters" or name.startswith("router-"):
            return manifest.router_blob_bytes_max
        case _:
            return 0


def check_inputs(manifest: RunManifest, unit: Unit) -> None:
    """Refuse a unit whose inputs are larger than the manifest implies, before any is fetched.

    Raises:
        TooLarge: and which it is.
    """
    for ref in unit.inputs:
        limit = input_limit(manifest, ref.name)
        if ref.size > limit:
            raise TooLarge(
                f"input '{ref.name}' of {unit.unit_id} has {ref.size} bytes; the run's manifest "
                f"allows {limit}"
            )


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
    work = _Work(unit, inputs, place, device, on_progress, on_state, should_stop)
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


@dataclass(frozen=True)
class _Work:
    unit: Unit
    inputs: dict[str, Path]
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

        key, parameters = self.unit.key, self.inputs.get("parameters")
        result = router_round(
            self.manifest,
            self.place.corpus,
            key.expert,
            key.index,
            parameters.read_bytes() if parameters else None,
            self._ids("share"),
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

        routers = [
            self._input(f"router-{expert}").read_bytes() for expert in range(self.manifest.experts)
        ]
        heldout = self.unit.key.index == HELDOUT
        result = shard(
            self.manifest,
            self.place.corpus,
            routers,
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
        from smalltalk_fed.train.lineage import Start

        state = self.unit.input("state")
        start = Start(self.unit.start_step, state.digest if state else "")
        weights, figures = self._train(
            "expert",
            expert=self.unit.key.expert,
            segment_ids=self._ids("segment"),
            seed_parameters=self.inputs.get("seed"),
            start=start,
            state=self.inputs.get("state"),
        )
        config = expert_config(self.manifest)
        kept = self._keep_expert(weights, config)
        if not self.manifest.config.expert.collects:
            return Done({}, figures)
        return Done({"config": config, "weights": kept}, figures)

    def evaluate(self) -> Done:
        from smalltalk_fed.train.evaluation import evaluate_expert

        expert_N = _decoded(
            self.unit,
            "routed",
            lambda: decode_experts(
                self._input("routed").read_bytes(),
                self.manifest.heldout_sequences,
                self.manifest.experts,
            ),
        )
        weights = self.inputs.get("weights") or expert_folder(self.place, self.unit) / WEIGHTS_FILE
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

    # -------------------------------------------------------------------------------- small

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

    def _input(self, name: str) -> Path:
        path = self.inputs.get(name)
        if path is None:
            raise Malformed(f"{self.unit.unit_id} came without its input '{name}'")
        return path

    def _ids(self, name: str) -> np.ndarray:
        data = self._input(name).read_bytes()
        return _decoded(self.unit, name, lambda: decode_ids(data, self.manifest.train_sequences))

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


def _decoded(unit: Unit, name: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return decode()
    except ValueError as error:
        raise Malformed(f"input '{name}' of {unit.unit_id}: {error}") from None
