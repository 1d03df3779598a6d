"""Where a unit's files are on this machine, and when they may go.

Rules: checkpoints lie in a folder of the unit and stay while the unit may come back here,
however it stopped; they go when its result counts, or when the run has moved on. Finished
experts and figures over time are the operator's to delete.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Malformed
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.limits import Limits

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
METRICS = "metrics"


@dataclass(frozen=True)
class Workplace:
    """Where and with what this node works."""

    manifest: RunManifest
    corpus: TokenCorpus
    folder: Path  # of checkpoints
    experts: Path  # of finished experts
    device: str  # as given: auto, cpu, cuda, ...
    limits: Limits = Limits()

    @classmethod
    def inside(
        cls,
        folder: NodeFolder,
        manifest: RunManifest,
        corpus: TokenCorpus,
        device: str,
        limits: Limits = Limits(),
    ) -> Workplace:
        """The places of a node's folder, made if they are not there."""
        work, experts = folder.place("work"), folder.place("experts")
        return cls(manifest, corpus, work, experts, device, limits)


def unit_folder(place: Workplace, unit: Unit) -> Path:
    """Where a unit's checkpoints are."""
    return place.folder / place.manifest.run_id / unit.unit_id.replace("/", "-")


def metrics_folder(place: Workplace, unit: Unit) -> Path:
    """Where a training's figures over time stay, also when it is finished."""
    return place.folder / place.manifest.run_id / METRICS / unit.unit_id.replace("/", "-")


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
    """Remove a unit's checkpoints: its result counts."""
    shutil.rmtree(unit_folder(place, unit), ignore_errors=True)


def forget_passed(place: Workplace, unit: Unit) -> None:
    """Remove checkpoints of what a run that gives out `unit` has behind it."""
    # An audit says as much of where the run is as the unit that it is of.
    now = UnitKey.parse(unit.key.target) if unit.key.kind is UnitKind.AUDIT else unit.key
    for key, folder in _units_in(place):
        if _passed(key, now):
            shutil.rmtree(folder, ignore_errors=True)


def forget_run(place: Workplace) -> None:
    """Remove all checkpoints: the run is finished."""
    for _, folder in _units_in(place):
        shutil.rmtree(folder, ignore_errors=True)


def _units_in(place: Workplace) -> list[tuple[UnitKey, Path]]:
    found = []
    for folder in (place.folder / place.manifest.run_id).glob("*"):
        try:
            found.append((UnitKey.parse(folder.name.replace("-", "/")), folder))
        except Malformed:
            continue  # the metrics' folder
    return found


def _passed(old: UnitKey, now: UnitKey) -> bool:
    match old.kind:
        case UnitKind.ROUTER_ROUND if now.kind is UnitKind.ROUTER_ROUND:
            return old.expert == now.expert and old.index < now.index
        case UnitKind.ROUTER_ROUND:
            return True
        case UnitKind.TRAIN_SEED:
            return now.kind in (UnitKind.TRAIN_EXPERT, UnitKind.EVALUATE)
        case UnitKind.TRAIN_EXPERT:
            return now.kind is UnitKind.EVALUATE
        case _:
            return False
