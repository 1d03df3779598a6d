"""A full disk under the node's folder: a sentence, the unit handed back, nothing half-done."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from smalltalk_node.outcomes import WORLD_FAILURES_MAX
from support.loopback_coordinator import Served
from support.node_stage import STOP, Stage, ids
from support.tiny_run import tiny_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Refused, WorldError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can't be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def stage(served: Served, corpus: TokenCorpus, small_disk: Path) -> Stage:
    made = Stage(served, corpus, served.node_folder(small_disk / "node"))
    made.play(STOP)  # it has joined once, while there was room
    return made


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    path = disk / "full"
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def _tight(stage: Stage, small_disk: Path, unit: Unit) -> str:
    """What the node says when the disk fills up as the unit is given out."""

    def give(question: msg.Exchange) -> msg.Order:
        fill(small_disk)
        return msg.Order("do this", unit=unit)

    stage.play(give, msg.Order("well", stop=True))
    failed = stage.loopback.exchanges[-1].failed
    assert failed is not None
    assert failed.unit_id == unit.unit_id
    return failed.reason


def _sentence(reason: str, where: Path) -> None:
    assert "No space left on device" in reason
    assert str(where) in reason
    assert "Traceback" not in reason
    assert "Error:" not in reason  # a class's name is no sentence


def test_no_room_for_an_input(stage: Stage, small_disk: Path) -> None:
    reason = _tight(stage, small_disk, stage.unit("router_round/0/1", share=ids()))
    _sentence(reason, stage.folder.path / "cache")


def test_no_room_for_an_experts_folder(stage: Stage, small_disk: Path) -> None:
    """The input is there; all that training writes is refused."""
    unit = stage.unit("train_expert/0", segment=ids(40))
    share = stage.unit("train_expert/1", segment=ids(40))
    assert share.inputs == unit.inputs
    stage.work(share)  # fetches the segment
    _sentence(_tight(stage, small_disk, unit), stage.folder.path)


def test_a_disk_that_fills_up_while_an_expert_is_trained(stage: Stage, small_disk: Path) -> None:
    """Its checkpoint can't be written: the unit is handed back, and goes on when there is room."""
    stage.manifest = tiny_manifest(
        stage.corpus,
        expert={"steps": 20_000},
        compute={"checkpoint_s": 0.01, "checkpoint_share": 1.0},
    )
    unit = stage.unit("train_expert/0", segment=ids(40))
    checkpoints = stage.folder.path / "work" / "run-1" / "train_expert-0" / "checkpoints"
    full: list[Path] = []
    reasons: list[str] = []

    def answer(question: msg.Exchange) -> msg.Order:
        if question.failed:
            reasons.append(question.failed.reason)
            return msg.Order("well", stop=True, failed=True)
        if question.working is None:
            return msg.Order("do this", unit=unit, heartbeat_s=0.01)
        if not full and any(checkpoints.glob("step-*/state.json")):
            full.append(fill(small_disk))
        return msg.Order("carry on", heartbeat_s=0.01)

    stage.script()
    stage.loopback.behaviour.exchange = answer
    with pytest.raises(Refused):
        stage.program().run()
    _sentence(reasons[0], checkpoints)
    assert not list(checkpoints.glob(".step-*"))
    assert list(checkpoints.glob("step-*/state.json"))


def test_a_node_that_starts_on_a_full_disk_says_so(stage: Stage, small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises((WorldError, OSError), match="No space left"):
        stage.play(STOP)


def test_a_machine_with_no_room_stops_after_three_units(stage: Stage, small_disk: Path) -> None:
    units = [stage.unit(f"router_round/{n}/1", share=ids()) for n in range(WORLD_FAILURES_MAX)]
    left = iter(units)

    def answer(question: msg.Exchange) -> msg.Order:
        if question.failed or question.working:
            return msg.Order("well")
        fill(small_disk)
        return msg.Order("do this", unit=next(left))

    stage.script()
    stage.loopback.behaviour.exchange = answer
    with pytest.raises(WorldError, match="No space left"):
        stage.program().run()
    failures = [question.failed for question in stage.loopback.exchanges if question.failed]
    assert len(failures) == WORLD_FAILURES_MAX - 1
