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
METRICS, SCORES, GIVEN = "metrics", "scores", "given"


@dataclass(frozen=True)
class Workplace:
    """Where and with what this node works; `corpus` is the run's, or this silo's own text."""

    manifest: RunManifest
    corpus: TokenCorpus
    folder: Path  # of checkpoints
    experts: Path  # of finished experts
    device: str  # as given: auto, cpu, cuda, ...
    limits: Limits = Limits()
    public: TokenCorpus | None = None  # in a private run that has public text

    @classmethod
    def inside(
        cls,
        folder: NodeFolder,
        manifest: RunManifest,
        corpus: TokenCorpus,
        device: str,
        limits: Limits = Limits(),
        public: TokenCorpus | None = None,
    ) -> Workplace:
        """The places of a node's folder, made if they are not there."""
        work, experts = folder.place("work"), folder.place("experts")
        return cls(manifest, corpus, work, experts, device, limits, public)


def unit_folder(place: Workplace, unit: Unit) -> Path:
    """Where a unit's checkpoints are."""
    return place.folder / place.manifest.run_id / unit.unit_id.replace("/", "-")


def metrics_folder(place: Workplace, unit: Unit) -> Path:
    """Where a training's figures over time stay, also when it is finished."""
    return place.folder / place.manifest.run_id / METRICS / unit.unit_id.replace("/", "-")


def expert_folder(place: Workplace, unit: Unit) -> Path:
    """Where the finished expert of `unit` is kept."""
    return expert_folder_of(place, unit.key.expert)


def expert_folder_of(place: Workplace, expert: int) -> Path:
    """Where a finished expert is kept."""
    return place.experts / place.manifest.run_id / str(expert)


def scores_folder(place: Workplace) -> Path:
    """Where a silo keeps the scores of its held-out text, which never leave; made if need be."""
    folder = place.folder / place.manifest.run_id / SCORES
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def given_folder(place: Workplace) -> Path:
    """Where a silo keeps what it gave under noise in this run; it stays when the run is over."""
    folder = place.folder / place.manifest.run_id / GIVEN
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    """Remove all checkpoints, and a silo's scores: the run is finished."""
    shutil.rmtree(place.folder / place.manifest.run_id / SCORES, ignore_errors=True)
    for _, folder in _units_in(place):
        shutil.rmtree(folder, ignore_errors=True)


def _units_in(place: Workplace) -> list[tuple[UnitKey, Path]]:
    found = []
    for folder in (place.folder / place.manifest.run_id).glob("*"):
        try:
            found.append((UnitKey.parse(folder.name.replace("-", "/")), folder))
        except Malformed:
            continue  # of metrics, scores, or what was given
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
            return now.kind in (UnitKind.EVALUATE, UnitKind.EVALUATE_SILO)
        case UnitKind.SILO_BLOCK if now.kind is UnitKind.SILO_BLOCK:
            return old.index < now.index
        case UnitKind.SILO_BLOCK:
            return now.kind in (UnitKind.TRAIN_EXPERT, UnitKind.EVALUATE_SILO)
        case _:
            return False
