"""kill -9 of a coordinator that serves two nodes over mutual TLS, at every commit.

The nodes' processes stay alive and reconnect. The run is the one that nobody killed, byte for
byte, and its audit passes. (Points between the commits: see
`test_a_coordinator_killed_at_every_write`; here each costs ten seconds.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.deployment import ENV, SMALL_RUN, Deployment, wait_for
from support.killed_run import outcome

from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.folder import RunFolder

NODES = ("a", "b")
SETTINGS = {
    **SMALL_RUN,
    "run.lease_s": 2.0,
    "run.poll_s": 1.0,
    "router.rounds": 2,
    "router.chunk_sequences": 320,
}
RUN_S = 240.0  # a run takes ten seconds on a machine that has nothing else to do


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> Deployment:
    """A run that has not begun, and two nodes that may take part."""
    made = Deployment(tmp_path_factory.mktemp("enrolled"), small_corpus, SETTINGS)
    made.init()
    made.serve()
    try:
        for name in NODES:
            made.join(name)
    finally:
        made.kill("coordinator")
    return made


@contextmanager
def copied(enrolled: Deployment, folder: Path) -> Iterator[Deployment]:
    """The same run anew, with its nodes' processes."""
    shutil.copytree(enrolled.folder, folder)
    made = replace(enrolled, folder=folder, children={})
    try:
        for name in NODES:
            made.node(name)
        yield made
    finally:
        for child in made.children.values():
            child.kill()
            child.wait()


def serve(run: Deployment, kill_at: int, only: str) -> None:
    """A coordinator that kills itself; points are counted on over its lives."""
    environment = {
        **ENV,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "KILL_AT": str(kill_at),
        "KILL_ONLY": only,
        "POINTS": str(run.folder / "points"),
    }
    with (run.folder / "coordinator.log").open("ab") as log:
        run.children["coordinator"] = subprocess.Popen(
            [sys.executable, "-m", "support.killed_serve", "serve", str(run.run)],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def served_to_the_end(run: Deployment) -> bool:
    """Wait until the coordinator died (False) or every node heard that the run is over."""

    def over() -> bool:
        return all(run.children[name].poll() is not None for name in NODES)

    child = run.children["coordinator"]
    wait_for(lambda: over() or child.poll() is not None, "a death or the end", RUN_S)
    if not over():
        assert child.wait() == -9, run.log("coordinator")[-3000:]
        return False
    for name in NODES:
        assert run.children[name].wait() == 0, run.log(name)[-3000:]
    wait_for(lambda: (run.run / "mixture").exists(), "the mixture")
    run.kill("coordinator")
    return True


def points(run: Deployment) -> list[str]:
    return (run.folder / "points").read_text().splitlines()


@pytest.fixture(scope="module")
def expected(enrolled: Deployment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What comes of the run that nobody kills."""
    with copied(enrolled, tmp_path_factory.mktemp("whole") / "copy") as run:
        serve(run, kill_at=0, only="")
        assert served_to_the_end(run)
        return outcome(RunFolder.open(run.run))


def check(run: Deployment, expected: dict[str, object], where: str) -> None:
    folder = RunFolder.open(run.run)
    assert outcome(folder) == expected, where
    report = audit(folder)
    assert report.proved, (where, report.findings)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("only", ["after append", "after own"])
def test_a_kill_at_each_point_one_at_a_time(
    enrolled: Deployment, expected: dict[str, object], tmp_path: Path, only: str
) -> None:
    """After every commit, before its answer; and in the worker, after every list."""
    number = 0
    while True:
        number += 1
        with copied(enrolled, tmp_path / str(number)) as run:
            serve(run, number, only)
            whole = served_to_the_end(run)
            where = f"killed at {number}: {points(run)[-1]}"
            if not whole:
                serve(run, 0, only)
                assert served_to_the_end(run), where
            check(run, expected, where)
        shutil.rmtree(tmp_path / str(number))
        if whole:
            break
    assert number > {"after append": 12, "after own": 6}[only]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_coordinator_that_dies_after_each_of_its_commits(
    enrolled: Deployment, expected: dict[str, object], tmp_path: Path
) -> None:
    """No life lasts longer than one commit, and none of them is answered."""
    lives = 1
    with copied(enrolled, tmp_path / "copy") as run:
        serve(run, 1, "after append")
        while not served_to_the_end(run):
            lives += 1
            serve(run, len(points(run)) + 1, "after append")
        check(run, expected, f"after {lives} lives")
    assert lives > 12
