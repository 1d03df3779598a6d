"""Kills a node's training at every step and before every change of its files, and goes on.

The unit is a node's own (`do_unit`), with a checkpoint and weights handed out after every
step. Each step and each change of its files is a point; for each one a forked process trains
until there and gets SIGKILL, and two others go on from what it left: with the unit as it was,
and with the unit as it is once the last state that this node handed out was collected. Both
must end with the bytes of the training that nobody killed.

Prints JSON: the points, how many of the second kind there were, and what was not the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.core.units import BlobRef, Unit, UnitKey
from smalltalk_fed.mixture.idlists import encode_ids
from smalltalk_fed.train import group  # noqa: F401  here, and not in every forked process
from smalltalk_fed.train.checkpoint import Checkpointer
from smalltalk_fed.train.handing_out import StateWriter
from smalltalk_fed.train.lineage import Start, note_handed_out, own_training, read_lineage
from smalltalk_fed.worksite.folders import Workplace, expert_folder, unit_folder
from smalltalk_fed.worksite.work import do_unit

EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
KEY = UnitKey.parse("train_expert/0")
Ending = list[object]  # the weights' digest, and the mean loss


class Points:
    """Counts what happens in the watched folder, and ends the process at the one asked for."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self.names: list[str] = []
        self._folder, self._kill_at = str(folder), kill_at
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not str(arguments[0]).startswith(self._folder):
            return
        if event != "open" or int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            place = str(arguments[0]).removeprefix(self._folder).lstrip("/")
            self.at(f"{event} {place}")

    def at(self, name: str) -> bool:
        """A point; False, so that it can be asked whether to stop."""
        self.names.append(name)
        if len(self.names) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def in_child(work: Callable[[], object]) -> Any:
    """Do `work` in a forked process; its JSON answer, or None if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer: object = {"answer": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        return None
    table = json.loads(said)
    if "error" in table:
        raise RuntimeError(table["error"])
    return table["answer"]


def in_order() -> None:
    """Have everything happen in an order that is always the same, with a checkpoint a step."""
    save, give = Checkpointer.save, StateWriter.save
    Checkpointer.due = property(lambda self: True)
    Checkpointer.save = lambda self, wait=False: save(self, wait=True)
    StateWriter.save = lambda self, model, step: (give(self, model, step), self.close())


def train(place: Workplace, unit: Unit, segment: Path, points: Points | None = None) -> Ending:
    """Do the unit; return what came of it."""
    torch.set_num_threads(1)
    folder = unit_folder(place, unit)

    def on_state(step: int, path: Path) -> None:
        note_handed_out(folder, step, hashlib.sha256(path.read_bytes()).hexdigest())
        path.unlink()

    done = do_unit(
        unit,
        {"segment": segment},
        place,
        lambda *_: None,
        on_state,
        lambda: points is not None and points.at("step"),
    )
    weights = (expert_folder(place, unit) / "model.safetensors").read_bytes()
    return [hashlib.sha256(weights).hexdigest(), done.figures["loss_mean"]]


def collected_unit(place: Workplace, unit: Unit) -> Unit | None:
    """The unit after the last state that this node handed out, if it got further itself."""
    lineage = read_lineage(unit_folder(place, unit))
    if lineage is None or not lineage.handed_out:
        return None
    step = max(lineage.handed_out)
    start = Start(step, lineage.handed_out[step])
    if own_training(unit_folder(place, unit), start) is None:
        return None
    return Unit(KEY, (*unit.inputs, BlobRef("state", start.state, 1)), step)


def main(root: Path) -> None:
    """Kill at every point."""
    corpus = write_tiny_corpus(root / "corpus")
    expert = {"steps": 3, "collect": "every 1 steps"}
    manifest = tiny_manifest(corpus, expert=expert)
    segment = root / "segment"
    segment.write_bytes(encode_ids(np.arange(40)))
    unit = Unit(KEY, (BlobRef("segment", "0" * 64, 1),))

    def place(name: str) -> Workplace:
        return Workplace(manifest, corpus, root / name / "work", root / name / "experts", "cpu")

    def whole() -> object:
        in_order()
        points = Points(root / "whole", 0)
        return train(place("whole"), unit, segment, points), points.names

    def cut(kill_at: int) -> object:
        in_order()
        return train(place("cut"), unit, segment, Points(root / "cut", kill_at))

    expected, points = in_child(whole)
    odd, collected = [], 0
    for number, name in enumerate(points, start=1):
        if in_child(partial(cut, number)) is not None:
            odd.append(f"{number}: {name} was never reached")
        (root / "cut").mkdir(exist_ok=True)  # the first points are before there is anything
        shutil.copytree(root / "cut", root / "twin")
        if in_child(partial(train, place("cut"), unit, segment)) != expected:
            odd.append(f"{number}: {name}")
        again = collected_unit(place("twin"), unit)
        if again is not None:
            collected += 1
            if in_child(partial(train, place("twin"), again, segment)) != expected:
                odd.append(f"{number}: {name}, from the collected state")
        for folder in ("cut", "twin"):
            shutil.rmtree(root / folder)
    print(json.dumps({"points": points, "collected": collected, "odd": odd}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
