"""kill -9 of the coordinator at every write of journal, blobs and mixture, one at a time.

The same run, byte for byte, whenever it is killed; and the audit of its folder passes. Points
are numbered by `support.kill_points`; not one is left out. A kill loses no page of the file
cache, so the folders lie in memory where the system has a place for that.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
ROUNDS = 3


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def labels(place: Path) -> list[str]:
    return (place / "points").read_text().splitlines()


def test_every_point_gives_the_same_run(place: Path) -> None:
    corpus = write_tiny_corpus(place / "corpus")
    folder = make_run_folder(
        place / "new",
        corpus,
        run={"lease_s": 20.0, "poll_s": 10.0},
        router={"rounds": ROUNDS},
        expert={"collect": "every 2 steps"},
    )
    doer = UnitDoer(folder.manifest, corpus)
    keys = {name: SigningKey.create() for name in ("a", "b")}

    def finish(kill_at: int) -> tuple[RunFolder, int]:
        for old in ("run", "points"):
            shutil.rmtree(place / old, ignore_errors=True)
        (place / "points").unlink(missing_ok=True)
        shutil.copytree(folder.path, place / "run")
        killed = KilledRun(zygote, RunFolder.open(place / "run"), doer, keys, kill_at)
        killed.finish()
        return killed.folder, killed.deaths

    with Zygote() as zygote:
        whole, deaths = finish(kill_at=1_000_000)
        assert deaths == 0
        expected, points = outcome(whole), labels(place)
        assert audit(whole).counts["collected"] == 2
        for number, label in enumerate(points, start=1):
            where = f"killed at point {number}, {label}"
            finished, deaths = finish(kill_at=number)
            assert deaths == 1, where
            assert labels(place) == points[:number], where
            assert outcome(finished) == expected, where
            report = audit(finished)
            assert report.proved, (where, report.findings)
