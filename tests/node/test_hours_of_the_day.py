"""A node works in the hours that its owner set, and comes and goes by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest
from smalltalk_node.connection import Connection
from smalltalk_node.options import Options
from smalltalk_node.program import Program
from support.node_stage import STOP, Stage, ids
from support.tiny_run import tiny_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import UserError
from smalltalk_fed.worksite.hours import Hours, work_by_hours
from smalltalk_fed.worksite.limits import Limits


def at(text: str) -> datetime:
    return datetime.strptime(f"2026-01-05 {text}", "%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("hours", "open_at", "closed_at"),
    [
        ("22-7", ["22:00", "23:59", "0:00", "6:59"], ["7:00", "12:00", "21:59"]),
        ("9:30-12,14-18", ["9:30", "11:59", "14:00"], ["9:29", "12:00", "13:59", "18:00"]),
        ("0-24", ["0:00", "23:59"], []),
        ("18-24", ["18:00", "23:59"], ["0:00", "17:59"]),
        ("always", ["0:00", "12:00"], []),
        ("", ["3:00"], []),
    ],
)
def test_hours_are_read(hours: str, open_at: list[str], closed_at: list[str]) -> None:
    parsed = Hours.parse(hours)
    assert all(parsed.open(at(time)) for time in open_at)
    assert not any(parsed.open(at(time)) for time in closed_at)


@pytest.mark.parametrize(
    "hours", ["25-3", "7", "7-7", "9:75-12", "nine-five", "9-12;14-18", "24-0"]
)
def test_what_are_no_hours_is_one_sentence(hours: str) -> None:
    with pytest.raises(UserError, match="write them like 22-7"):
        Hours.parse(hours)


def test_when_they_begin_next() -> None:
    hours = Hours.parse("9:30-12,14-18")
    assert [hours.next_start(at(t)) for t in ("3:00", "12:00", "18:00", "9:30")] == [
        "9:30", "14:00", "9:30", "14:00",
    ]  # fmt: skip


class Day:
    """A clock that says what it is told; work_by_hours looks at it."""

    def __init__(self, time: str) -> None:
        self.time = time
        self.looked = threading.Event()

    def now(self) -> datetime:
        self.looked.set()
        return at(self.time)


def test_a_node_leaves_when_its_hours_end_and_comes_back_when_they_begin(stage: Stage) -> None:
    """In the middle of a training: a checkpoint, the lease back, and the same unit goes on."""
    stage.script(manifest=tiny_manifest(stage.corpus, expert={"steps": 20_000}))
    unit = stage.unit("train_expert/0", segment=ids(40))
    day = Day("23:00")
    steps: list[float] = []

    def exchange(question: msg.Exchange) -> msg.Order:
        if question.working is None:
            return STOP if stage.loopback.left else msg.Order("do", unit=unit, heartbeat_s=0.02)
        if question.working.figures.get("step"):
            steps.append(question.working.figures["step"])
            day.time = "7:00"
        return msg.Order("carry on", heartbeat_s=0.02)

    stage.loopback.behaviour.exchange = exchange
    made: list[Program] = []

    def make() -> Program:
        made.append(Program(stage.folder, Options(stage.corpus.folder, "cpu", 1)))
        return made[-1]

    def until_it_left() -> None:
        while not stage.loopback.left:
            day.looked.clear()
            day.looked.wait(30)
        assert list((stage.folder.path / "work" / "run-1" / "train_expert-0").rglob("step-*"))
        day.time = "22:00"

    watcher = threading.Thread(target=until_it_left, daemon=True)
    watcher.start()
    assert work_by_hours(Hours.parse("22-7"), make, day.now, look_s=0.02) == STOP.reason
    assert len(made) == 2
    assert len(steps) > 0
    assert "until 22:00" in stage.loopback.left[0].reason
    first, second = (join.incarnation for join in stage.loopback.joins)
    assert second > first


def test_outside_its_hours_a_node_says_nothing_to_anybody(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "smalltalk.node")
    stage.script(STOP)
    day = Day("12:00")
    looks: list[int] = []

    def now() -> datetime:
        looks.append(len(stage.loopback.joins))
        if len(looks) > 6:
            day.time = "22:30"
        return day.now()

    make = stage.program
    assert work_by_hours(Hours.parse("22-7"), make, now, look_s=0.01) == STOP.reason
    assert looks[:6] == [0] * 6
    said = [r.getMessage() for r in caplog.records if "works again at 22:00" in r.getMessage()]
    assert len(said) == 1


def test_being_stopped_by_a_person_is_not_a_rest(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the node says goodbye for the day: it does not come back."""
    stage.script()
    program: list[Program] = []
    goodbye = Connection.leave

    def held(question: msg.Exchange) -> msg.Order:
        program[0].rest("outside the hours")
        stage.loopback.released.wait(30)
        return STOP

    def leave(self: Connection, message: msg.Leave, timeout_s: float) -> msg.Left:
        program[0].stop()
        return goodbye(self, message, timeout_s)

    stage.loopback.behaviour.exchange = held
    monkeypatch.setattr(Connection, "leave", leave)

    def make() -> Program:
        program.append(stage.program())
        return program[-1]

    with pytest.raises(KeyboardInterrupt):
        work_by_hours(Hours.parse("22-7"), make, lambda: at("23:00"), look_s=0.01)
    assert len(program) == 1
    assert len(stage.loopback.left) == 1


def test_without_hours_nothing_is_watched(stage: Stage) -> None:
    stage.script(STOP)

    def never() -> datetime:
        raise AssertionError("nobody needs the time")

    assert work_by_hours(Hours(), stage.program, never) == STOP.reason


def test_ctrl_c_works_while_a_node_rests(stage: Stage) -> None:
    """The program itself, started outside the hours that its command line says."""
    now = datetime.now().hour
    hours = f"{(now + 3) % 24}-{(now + 5) % 24}"
    command = [
        str(Path(sys.executable).parent / "smalltalk-node"), "run", "--dir", stage.folder.path,
        "--corpus", stage.corpus.folder, "--hours", hours,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as node:
        assert node.stderr is not None
        assert "works again at" in node.stderr.readline()
        node.send_signal(signal.SIGINT)
        rest = node.stderr.read()
    assert node.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert stage.loopback.joins == []
    assert Limits.load(stage.folder.path).hours == hours
