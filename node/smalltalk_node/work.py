"""One work unit on this machine: inputs from files, the computation, outputs to files.

Rules: what a unit computes is `smalltalk_fed.train`'s part; here its inputs are decoded and
bounded and its outputs named as the coordinator expects them. Nobody is talked to. torch is
imported when the first unit begins. Large weights stay files: a unit's working folder keeps
checkpoints, so that a unit that was cut off goes on; finished experts are kept whole, as
folders that `transformers` loads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import HELDOUT, BlobRef, Unit, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Malformed, Refused, TooLarge
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_BYTES_MAX = 1 << 16

Output = bytes | Path
OnProgress = Callable[[float, dict[str, float]], None]


@dataclass(frozen=True)
class Workplace:
    """Where and with what this node works."""

    manifest: RunManifest
    corpus: TokenCorpus
    folder: Path  # of checkpoints
    experts: Path  # of finished experts
    device: str  # as given: auto, cpu, cuda, ...


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
        case "weights" | "seed":
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


def do_unit(
    unit: Unit,
    inputs: dict[str, Path],
    place: Workplace,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> Done:
    """Compute `unit`; `inputs` are its inputs' files by name.

    Raises:
        Malformed, Refused: an input can't be used.
        WorldError: the disk refuses.
        smalltalk_fed.train.plan.Stopped: `should_stop` said so.
    """
    from smalltalk_fed.train.device import choose_device

    work = _Work(unit, inputs, place, str(choose_device(place.device)), on_progress, should_stop)
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
            heldout=heldout,
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return Done({"experts": result.experts}, result.figures)

    def train_seed(self) -> Done:
        from smalltalk_fed.train.group import train_on_node

        weights, figures = train_on_node(
            "seed",
            self.manifest,
            self.place.corpus,
            self._folder(),
            device=self.place.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
            metrics_folder=metrics_folder(self.place, self.unit),
        )
        return Done({"weights": weights}, figures)

    def train_expert(self) -> Done:
        from smalltalk_fed.train.group import train_on_node

        weights, figures = train_on_node(
            "expert",
            self.manifest,
            self.place.corpus,
            self._folder(),
            device=self.place.device,
            expert=self.unit.key.expert,
            segment_ids=self._ids("segment"),
            seed_parameters=self.inputs.get("seed"),
            on_progress=self.on_progress,
            should_stop=self.should_stop,
            metrics_folder=metrics_folder(self.place, self.unit),
        )
        config = expert_config(self.manifest)
        kept = self._keep_expert(weights, config)
        if not self.manifest.config.expert.collects:
            return Done({}, figures)
        return Done({"config": config, "weights": kept}, figures)

    def evaluate(self) -> Done:
        from smalltalk_fed.train.experts import evaluate_expert

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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_bytes(config)
        return weights.replace(folder / WEIGHTS_FILE)


def unit_folder(place: Workplace, unit: Unit) -> Path:
    """Where a unit's checkpoints are."""
    return place.folder / place.manifest.run_id / unit.unit_id.replace("/", "-")


def metrics_folder(place: Workplace, unit: Unit) -> Path:
    """Where a training's figures over time stay, also when it is finished."""
    return place.folder / place.manifest.run_id / "metrics" / unit.unit_id.replace("/", "-")


def expert_folder(place: Workplace, unit: Unit) -> Path:
    """Where the finished expert of `unit` is kept."""
    return place.experts / place.manifest.run_id / str(unit.key.expert)


def known_file(place: Workplace, unit: Unit, ref: BlobRef) -> Path | None:
    """A finished expert's file that may be this input: who trained an expert has it already."""
    names = {"config": CONFIG_FILE, "weights": WEIGHTS_FILE}
    if unit.key.kind is not UnitKind.EVALUATE or ref.name not in names:
        return None
    path = expert_folder(place, unit) / names[ref.name]
    return path if path.exists() else None


def forget_unit(place: Workplace, unit: Unit) -> None:
    """Remove a unit's checkpoints: its result counts, or somebody else's does."""
    shutil.rmtree(unit_folder(place, unit), ignore_errors=True)


def expert_config(manifest: RunManifest) -> bytes:
    """config.json of this run's experts, the same bytes on every node."""
    from smalltalk_fed.model.build import model_config

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
