"""SuperLink and SuperNodes as processes, TLS and node authentication; what kills cost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.deployment import wait_for
from support.flower_runs import events, what_came
from support.local_run import finish_run, make_run_folder
from support.tiny_run import tiny_toml

from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.children import Children
from smalltalk_fed.demo.federation import Federation
from smalltalk_fed.flower.app_folder import write_app
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.offline import status_offline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NODES = 4
WAIT_S, LOOK_S = 300.0, 0.2
TABLES: dict[str, dict[str, object]] = {
    "audit": {"rate": 0.0},
    # Flower says after a minute that an app died: a copy at a free node would be done by then.
    "run": {"nodes_to_start": NODES, "lease_s": 10.0, "spare_copies": 0},
    "expert": {"steps": 4000},
}


@pytest.fixture
def federation(corpus: TokenCorpus, tmp_path: Path) -> Iterator[Federation]:
    """Four SuperNodes that wait for a run."""
    with Children(tmp_path / "logs", Federation.environment(tmp_path)) as children:
        made = Federation(tmp_path, children)
        made.start()
        for number in range(NODES):
            where = {"dir": str(tmp_path / f"node-{number}"), "corpus": str(corpus.folder)}
            made.add_node(f"node-{number}", where | {"device": "cpu", "name": f"node-{number}"})
        yield made


@pytest.fixture
def submit(federation: Federation, corpus: TokenCorpus, tmp_path: Path) -> Callable[[], str]:
    """Hands the run in, the first time and again."""
    (tmp_path / "run.toml").write_text(tiny_toml(corpus, **TABLES))
    app = write_app(
        tmp_path / "app",
        run_dir=str(tmp_path / "run"),
        corpus=str(corpus.folder),
        config=str(tmp_path / "run.toml"),
        turn_s=60.0,  # an answer that is late is knocked for a minute after that
    )
    return lambda: federation.submit(app)


@pytest.fixture
def native(corpus: TokenCorpus, tmp_path: Path) -> dict[str, object]:
    folder = make_run_folder(tmp_path / "native", corpus, **TABLES)
    finish_run(folder, corpus, ("a", "b", "c", "d"))
    return what_came(folder)


def done(folder: Path) -> list[str]:
    if not (folder / "journal.sqlite").exists():
        return []
    found = [event for event in events(RunFolder.open(folder)) if isinstance(event, UnitAccepted)]
    return [event.unit_id for event in found]


def phase(folder: Path) -> str:
    return str(status_offline(RunFolder.open(folder), SystemClock())["phase"])


def pids(*words: str) -> list[int]:
    """Processes whose command line has all of these words, of this test's own making."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


def app_at_work(federation: Federation, folder: Path) -> int | None:
    """A ClientApp that trains an expert: its node's folder has a curve already."""
    for node in federation.supernodes:
        curves = (folder / node.name / "work").glob("*/metrics/train_expert-*/metrics.jsonl")
        if node.ended or not any(curves):
            continue
        apps = [pid for pid in pids("flwr-clientapp") if node.process.pid in parents(pid)]
        if apps:
            return max(apps)  # one of an earlier message may still be ending
    return None


def parents(pid: int) -> list[int]:
    """A process' ancestors, the nearest first."""
    found = []
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return found
        pid = int(stat.rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_a_run_over_four_supernodes_is_the_native_one_whatever_is_killed(
    federation: Federation,
    submit: Callable[[], str],
    native: dict[str, object],
    tmp_path: Path,
) -> None:
    """One run, so that the minutes of waiting for Flower are paid once.

    A ServerApp is killed in the middle and handed in again; then a SuperNode ends for good, and
    the ClientApp of another is killed at work, which costs one turn.
    """
    run, port = tmp_path / "run", str(federation.port)
    first = submit()
    wait_for(lambda: len(done(run)) >= 2, "two units to be done", WAIT_S, LOOK_S)
    for pid in pids("flwr-serverapp", port):
        os.kill(pid, signal.SIGKILL)
    killed = federation.wait(first, 200.0)
    assert killed["status"] == "finished:failed"
    before = len(done(run))
    second = submit()
    wait_for(lambda: len(done(run)) > before, "the run to go on", WAIT_S, LOOK_S)
    federation.children.end(federation.supernodes[0])
    wait_for(lambda: phase(run) == "training", "the experts to be trained", WAIT_S, 1.0)
    app = wait_for(lambda: app_at_work(federation, tmp_path), "an expert's app", WAIT_S, LOOK_S)
    os.kill(app, signal.SIGKILL)
    line = federation.wait(second, 600.0, (run / "mixture").exists)
    assert line["status"] == "finished:completed", federation.log(second)
    folder = RunFolder.open(run)
    assert what_came(folder) == native
    assert audit(folder).proved
    assert len(done(run)) == len(set(done(run)))
    said = federation.log(second)
    assert "(1 in a row)" in said
    assert "(2 in a row)" not in said
    assert "suffix_ppl" in said


def test_a_supernode_without_a_registered_key_is_not_let_in(
    federation: Federation, corpus: TokenCorpus, tmp_path: Path
) -> None:
    federation._node_key("stranger")
    stranger = federation.start_node("stranger", {"dir": str(tmp_path / "s")})
    wait_for(lambda: stranger.ended, "the stranger to be sent away", 60.0, LOOK_S)
    assert stranger.process.returncode != 0
