"""Where an expert's training in a work folder comes from: may its checkpoints go on?

A node that is given an expert at step s with weights `state` goes on from its own checkpoint,
moments and all, if those very weights came out of the training that left it: the expert is
then the one that an undisturbed training gives, also where the checkpoint is a little older
than the weights. Otherwise it begins at `state`. Rules: `lineage.json` says which start the
folder's checkpoints have, the name of their run, and the digests of what was handed out
since; it is written whole and before anybody hears of a digest. What is decided depends on
files alone, so that all processes of a group decide the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from smalltalk_fed.model.state import write_atomically
from smalltalk_fed.train.checkpoint import CHECKPOINTS, newest_step

LINEAGE_FILE = "lineage.json"


@dataclass(frozen=True)
class Start:
    """After so many steps with these weights: the file's SHA-256, empty at the beginning."""

    step: int = 0
    state: str = ""


FROM_THE_BEGINNING = Start()


@dataclass(frozen=True)
class Lineage:
    """One start, the checkpoints' run, and what was handed out: step to digest."""

    start: Start
    run: str
    handed_out: dict[int, str] = field(default_factory=dict)

    def leads_to(self, start: Start) -> bool:
        """Whether the weights of `start` came out of this training."""
        return start == self.start or self.handed_out.get(start.step) == start.state


def read_lineage(folder: Path) -> Lineage | None:
    """Return what the folder's file says; None without one, or with one that can't be read."""
    try:
        table = json.loads((folder / LINEAGE_FILE).read_text())
        handed_out = {int(step): str(digest) for step, digest in table["handed_out"].items()}
        start = Start(int(table["start_step"]), str(table["start_state"]))
        return Lineage(start, str(table["run"]), handed_out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def own_training(folder: Path, start: Start) -> Lineage | None:
    """Return the folder's own training if the weights of `start` came out of it and it can go on.

    Whoever has it needs no weights.
    """
    lineage = read_lineage(folder)
    if lineage is None or start == lineage.start or not lineage.leads_to(start):
        return None
    return None if newest_step(folder / CHECKPOINTS, lineage.run) is None else lineage


def begin_lineage(folder: Path, start: Start, run: str) -> None:
    """Say what the folder's checkpoints come from now on; unchanged if it is what they do.

    Raises WorldError when the disk refuses.
    """
    before = read_lineage(folder)
    if before is None or (before.start, before.run) != (start, run):
        _write(folder, Lineage(start, run))


def note_handed_out(folder: Path, step: int, digest: str) -> None:
    """Remember that the weights of `step` went out; call it before anybody is told.

    Raises WorldError when the disk refuses.
    """
    lineage = read_lineage(folder)
    if lineage is not None:
        handed_out = lineage.handed_out | {step: digest}
        _write(folder, replace(lineage, handed_out=handed_out))


def _write(folder: Path, lineage: Lineage) -> None:
    table = {
        "start_step": lineage.start.step,
        "start_state": lineage.start.state,
        "run": lineage.run,
        "handed_out": {str(step): digest for step, digest in lineage.handed_out.items()},
    }
    text = json.dumps(table, sort_keys=True)
    write_atomically(folder / LINEAGE_FILE, lambda part: _fill(part, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text)
