"""A restart needs the newest snapshot and the events after it, and gives what a replay gives."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.core_world import make_manifest
from support.hosts import enter, open_host, run

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.events import Event, InviteMade
from smalltalk_fed.core.state import HardState
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host import journal as journal_module
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.recovery import recover

MANIFEST = make_manifest(nodes_to_start=50)


class Watched(Journal):
    """Notes which tails are read, and may refuse snapshots as a full disk would."""

    def __init__(self, path: Path, *, full: bool = False) -> None:
        self.tails: list[int] = []
        self.full = full
        super().__init__(path)

    def events_after(self, last_id: int) -> Iterator[Event]:
        self.tails.append(last_id)
        return super().events_after(last_id)

    def keep_snapshot(self, up_to: int, data: bytes) -> None:
        if self.full:
            raise WorldError("the journal can't be written (disk full)")
        super().keep_snapshot(up_to, data)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 10)


def enter_nodes(folder: Path, nodes: int, journal: Journal | None = None) -> HardState:
    """A host that takes a snapshot every 10 events, and nodes that enter one by one."""
    states: list[HardState] = []

    async def work() -> None:
        opened = journal or Journal(folder / "journal.sqlite")
        host = Host(MANIFEST, opened, folder / "blobs", ManualClock(), snapshot_events=10)
        host.start()
        for number in range(nodes):
            await enter(host, f"node-{number}")
            await asyncio.sleep(0.001)
        await host.stop()
        states.append(host.coordinator.state)
        opened.close()

    run(work)
    return states[0]


def replayed(folder: Path) -> HardState:
    journal = Journal(folder / "journal.sqlite")
    return Coordinator.replay(MANIFEST, journal.events(), 0.0).state


def test_snapshots_come_by_themselves_and_the_restarted_state_is_the_replayed_one(
    tmp_path: Path,
) -> None:
    state = enter_nodes(tmp_path, 30)
    journal = Watched(tmp_path / "journal.sqlite")
    snapshots = [snapshot.up_to for snapshot in journal.snapshots()]
    assert len(snapshots) == 2
    assert journal.last_id == 90
    assert snapshots[0] > 90 - 30
    restarted, at = recover(MANIFEST, journal, 0.0)
    assert journal.tails == [at] == snapshots[:1]
    assert restarted.state == state == replayed(tmp_path)
    database = sqlite3.connect(tmp_path / "journal.sqlite")
    assert database.execute("SELECT COUNT(*) FROM archive").fetchone()[0] >= 3


def test_a_restarted_host_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    enter_nodes(tmp_path, 20)
    later: list[HardState] = []

    async def work() -> None:
        host = open_host(tmp_path, MANIFEST)
        host.start()
        await enter(host, "late")
        later.append(host.coordinator.state)
        await host.stop()

    run(work)
    assert later[0] == replayed(tmp_path)
    assert later[0].joined == 21


def test_what_happens_while_a_snapshot_is_written_is_not_in_it(tmp_path: Path) -> None:
    """The state goes on changing; the snapshot is of its event, not of a later one."""
    states: dict[int, HardState] = {}

    async def work() -> None:
        journal = Journal(tmp_path / "journal.sqlite")
        host = Host(MANIFEST, journal, tmp_path / "blobs", ManualClock(), snapshot_events=7)
        host.start()
        await asyncio.gather(*(enter(host, f"node-{n}") for n in range(40)))
        await host.stop()
        for snapshot in journal.snapshots():
            states[snapshot.up_to] = recover(MANIFEST, journal, 0.0)[0].state
            whole = HardState(MANIFEST)
            for number, event in enumerate(journal.events(), start=1):
                if number <= snapshot.up_to:
                    whole.apply(event)
            said = json.loads(snapshot.data)
            assert said["joined"] == whole.joined
            assert {node["node_id"] for node in said["nodes"]} == set(whole.nodes)

    run(work)
    assert states


def test_a_snapshot_that_can_t_be_written_is_logged_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "smalltalk.host"):
        state = enter_nodes(tmp_path, 15, Watched(tmp_path / "journal.sqlite", full=True))
    assert "was not kept" in caplog.text
    assert state == replayed(tmp_path)
    assert not list(Journal(tmp_path / "journal.sqlite").snapshots())


@pytest.mark.parametrize(
    "data", [b"", b"not JSON", b"[]", b"{}", b'{"format_version": 99}', b"\xff\xfe", b"null"]
)
def test_a_snapshot_that_says_nothing_falls_back_to_the_one_before_and_to_the_replay(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    enter_nodes(tmp_path, 20)
    journal = Watched(tmp_path / "journal.sqlite")
    journal.append([InviteMade(2e6, "a" * 64, 9e9, 1, ""), InviteMade(2e6, "b" * 64, 9e9, 1, "")])
    state = replayed(tmp_path)
    good = journal.latest_snapshot()
    assert good
    journal.keep_snapshot(journal.last_id, data)
    assert recover(MANIFEST, journal, 0.0)[0].state == state
    assert journal.tails[-1] == good.up_to
    assert "can't be used" in caplog.text
    journal.keep_snapshot(journal.last_id - 1, data)
    journal.keep_snapshot(journal.last_id, data)
    assert recover(MANIFEST, journal, 0.0)[0].state == state
    assert journal.tails[-1] == 0


def test_the_operator_s_decisions_offline_build_on_the_snapshot(tmp_path: Path) -> None:
    enter_nodes(tmp_path, 20)
    journal = Watched(tmp_path / "journal.sqlite")
    coordinator, _ = recover(MANIFEST, journal, 0.0)
    secret = hashlib.sha256(b"one more").hexdigest()
    journal.append(coordinator.handle(msg.MakeInvite(secret, 9e9), 1, 1e6).events)
    assert secret in replayed(tmp_path).invites
