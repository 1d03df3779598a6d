"""kill -9 of the coordinator at every write of journal, blobs and mixture, one at a time.

The same run, byte for byte, whenever it is killed; and the audit of its folder passes. Points
are numbered by `support.kill_points`; the slow test leaves not one out, the quick one kills at
a point of every kind. A kill loses no page of the file cache, so the folders lie in memory
where the system has a place for that.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.killable_coordinator import Zygote
from support.killed_run import KilledRun, outcome
from support.local_run import make_run_folder
from support.tiny_run import write_tiny_corpus
from support.tiny_units import UnitDoer

from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.wire.signing import SigningKey

MEMORY = Path("/dev/shm")


@dataclass
class Runs:
    """The same run again and again, each in a folder of its own."""

    place: Path
    folder: RunFolder
    doer: UnitDoer
    zygote: Zygote
    keys: dict[str, SigningKey] = field(
        default_factory=lambda: {name: SigningKey.create() for name in ("a", "b")}
    )

    def finish(self, kill_at: int, **options: Any) -> KilledRun:
        """Take it to its end."""
        shutil.rmtree(self.place / "run", ignore_errors=True)
        (self.place / "points").unlink(missing_ok=True)
        shutil.copytree(self.folder.path, self.place / "run")
        folder = RunFolder.open(self.place / "run")
        run = KilledRun(self.zygote, folder, self.doer, self.keys, kill_at, **options)
        run.finish()
        return run


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name, Zygote() as zygote:
        place = Path(name)
        corpus = write_tiny_corpus(place / "corpus")
        folder = make_run_folder(
            place / "new",
            corpus,
            run={"lease_s": 20.0, "poll_s": 10.0},
            router={"rounds": 3},
            expert={"collect": "every 2 steps"},
        )
        yield Runs(place, folder, UnitDoer(folder.manifest, corpus), zygote)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[dict[str, object], list[str]]:
    """What comes of the run that nobody kills, and its points."""
    run = runs.finish(kill_at=1_000_000)
    assert run.deaths == 0
    assert audit(run.folder).counts["collected"] == 2
    return outcome(run.folder), run.points()


def ends_the_same(
    runs: Runs, whole: tuple[dict[str, object], list[str]], numbers: Iterable[int]
) -> None:
    """Kill at each of these points, one at a time."""
    expected, points = whole
    for number in numbers:
        where = f"killed at point {number}, {points[number - 1]}"
        run = runs.finish(kill_at=number)
        assert run.deaths == 1, where
        assert run.points() == points[:number], where
        assert outcome(run.folder) == expected, where
        report = audit(run.folder)
        assert report.proved, (where, report.findings)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes of one core, and more on a machine that is busy
def test_every_point_gives_the_same_run(
    runs: Runs, whole: tuple[dict[str, object], list[str]]
) -> None:
    ends_the_same(runs, whole, range(1, len(whole[1]) + 1))


def test_a_point_of_every_kind_gives_the_same_run(
    runs: Runs, whole: tuple[dict[str, object], list[str]]
) -> None:
    """The last one of each: what is written anew after it is what others wrote before."""
    last = {kind_of(label): number for number, label in enumerate(whole[1], start=1)}
    ends_the_same(runs, whole, last.values())


def kind_of(label: str) -> str:
    """A point's label without numbers, digests and all units but the first."""
    return re.sub(r"[/,].*|\b[0-9a-f]{6,}\b|[0-9.]+", "", label).strip()


def test_the_points_are_of_every_kind(whole: tuple[dict[str, object], list[str]]) -> None:
    """Names of a few that must be there, so that none is lost when the product changes."""
    _, points = whole
    for kind in (
        "before append", "written, not committed", "after append", "after begin", "after write",
        "before sync", "after finish", "before own", "before drop", "after snapshot",
        "after archive", "before place", "before sync of the mixture's name", "after mixture",
    ):  # fmt: skip
        assert any(point.startswith(kind) for point in points), kind


@pytest.mark.parametrize("only", ["after append", "after finish", "after own", "after snapshot"])
def test_a_coordinator_that_dies_again_and_again(
    runs: Runs, whole: tuple[dict[str, object], list[str]], only: str
) -> None:
    """No life lasts longer than one commit, one upload, one list or one snapshot."""
    expected, points = whole
    run = runs.finish(kill_at=1, only=only, again=True)
    assert run.deaths >= sum(only in point for point in points) / 2
    assert outcome(run.folder) == expected
    report = audit(run.folder)
    assert report.proved, report.findings
