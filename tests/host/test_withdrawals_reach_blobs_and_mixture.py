"""A withdrawn expert is gone from the blobs and the mixture, also after a crash in between."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from smalltalk_coordinator.cli import app
from support.planted_run import Planted
from typer.testing import CliRunner

from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.retention import blobs_of_expert
from smalltalk_fed.core.state import ROUNDS_KEPT, HardState
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.backup import backup
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.recovery import recover
from smalltalk_fed.host.status import run_status


@pytest.fixture
def run(planted: Planted) -> RunFolder:
    """Finished, with its mixture."""
    folder = planted.folder
    assert assemble_mixture(folder, state_of(folder), BlobStore(folder.blobs))
    return folder


def coordinator_of(folder: RunFolder) -> Coordinator:
    journal = Journal(folder.journal, create=False)
    try:
        return recover(folder.manifest, journal, 1e9)[0]
    finally:
        journal.close()


def state_of(folder: RunFolder) -> HardState:
    return coordinator_of(folder).state


def only_of(folder: RunFolder, expert: int) -> tuple[str, ...]:
    """Blobs that no other expert has; config.json is the same for all."""
    others = blobs_of_expert(state_of(folder), 1 - expert)
    return tuple(d for d in blobs_of_expert(state_of(folder), expert) if d not in others)


def kept(folder: RunFolder, digests: tuple[str, ...]) -> list[bool]:
    blobs = BlobStore(folder.blobs)
    return [blobs.has(digest) for digest in digests]


def in_mixture(folder: RunFolder) -> set[str]:
    return {
        str(path.relative_to(folder.mixture)).removesuffix("/model.safetensors")
        for path in folder.mixture.rglob("*.safetensors")
    }


def withdraw(folder: RunFolder, target: str, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["withdraw", str(folder.path), target, *more])
    return done.exit_code, done.stdout.strip()


def test_the_operators_command_removes_it_where_nobody_serves(run: RunFolder) -> None:
    gone, others = only_of(run, 0), blobs_of_expert(state_of(run), 1)
    assert all(kept(run, gone + others))
    assert len(gone) == 1 + ROUNDS_KEPT  # weights, parameters
    said = withdraw(run, "0", "--yes", "--reason", "asked by letter")
    assert said == (0, "expert 0 left the mixture")
    assert not any(kept(run, gone))
    assert all(kept(run, others))
    assert in_mixture(run) == {"routers/1.safetensors", "experts/1"}
    entry = json.loads((run.mixture / "mixture.json").read_text())["experts"][0]
    assert entry["withdrawn"] == "asked by letter"
    (told,) = run_status(coordinator_of(run), 1e9)["withdrawn"]
    assert (told["expert"], told["by"]) == (0, "operator")
    assert withdraw(run, "0", "--yes") == (0, "expert 0 had left it before")


def test_a_nodes_experts_leave_together(run: RunFolder) -> None:
    node_id = state_of(run).finished["train_expert/0"].node_id
    code, _ = withdraw(run, node_id, "--yes")
    assert code == 0
    left = state_of(run).withdrawn
    assert {event.node_id for event in left.values()} == {node_id}


def test_it_asks_first(run: RunFolder) -> None:
    done = CliRunner().invoke(app, ["withdraw", str(run.path), "0"], input="n\n")
    assert done.exit_code != 0
    assert state_of(run).withdrawn == {}


def test_the_run_is_still_proved_and_backed_up(run: RunFolder, tmp_path: Path) -> None:
    withdraw(run, "0", "--yes")
    report = audit(run)
    assert report.proved, report.findings
    backup(run, tmp_path / "copy")
    assert state_of(RunFolder.open(tmp_path / "copy")) == state_of(run)


def test_what_a_crash_left_of_it_goes_at_the_next_start(run: RunFolder) -> None:
    state = state_of(run)
    gone = only_of(run, 1)
    owner = state.finished["train_expert/1"].node_id
    journal = Journal(run.journal, create=False)
    event = silo_ev.ExpertWithdrawn(
        state.last_at, 1, owner, "owner", "ours again", blobs_of_expert(state, 1)
    )
    journal.append([event])  # and then the power failed
    assert all(kept(run, gone))

    async def start() -> None:
        host = Host(
            run.manifest,
            journal,
            run.blobs,
            SystemClock(),
            executor=ThreadPoolExecutor(1),
            on_finished=lambda coordinator, blobs: _package(run, coordinator, blobs),
        )
        host.start()
        while any(kept(run, gone)):  # the mixture comes before them
            await asyncio.sleep(0)
        await host.stop()

    asyncio.run(asyncio.wait_for(start(), 60))
    journal.close()
    assert in_mixture(run) == {"routers/0.safetensors", "experts/0"}


def _package(run: RunFolder, coordinator: Coordinator, blobs: BlobStore) -> None:
    assemble_mixture(run, coordinator.state, blobs)


def test_a_mixture_that_is_made_after_it_never_has_it(planted: Planted) -> None:
    folder = planted.folder
    withdraw(folder, "0", "--yes")
    assert assemble_mixture(folder, state_of(folder), BlobStore(folder.blobs))
    assert in_mixture(folder) == {"routers/1.safetensors", "experts/1"}


def test_a_mixture_that_somebody_spoilt_stops_nothing(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (run.mixture / "mixture.json").write_text("{")
    assert withdraw(run, "0", "--yes") == (0, "expert 0 left the mixture")
    assert "by hand" in caplog.text
