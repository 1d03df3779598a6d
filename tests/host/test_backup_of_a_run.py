"""A backup is a run folder of one moment: whole, checked, and not there if it can't be."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hosts import enter, run
from support.routers import router_result
from support.tiny_run import LENGTH, SHAPE, write_tiny_corpus

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.state import HardState
from smalltalk_fed.errors import DamagedBlob, UserError, WorldError
from smalltalk_fed.host import backup as backup_module
from smalltalk_fed.host.backup import backup
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.database import DamagedJournal
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.recovery import recover, take_snapshot


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose first round is half done, as an earlier coordinator left it."""
    corpus = write_tiny_corpus(tmp_path / "corpus").folder
    table = {
        "run": {"experts": 2},
        "sequence": {"length": LENGTH, "prefix": 8},
        "router": {"model": SHAPE, "rounds": 2, "chunk_sequences": 40},
        "expert": {"model": SHAPE},
    }
    made = RunFolder.create(
        tmp_path / "run", parse_config(table, "test"), "", corpus, Addresses("h:1", "h:2"), 0.0
    )

    async def half_a_round() -> None:
        host = open_host(made)
        host.start()
        node_id = await enter(host)
        await host.ask(msg.Exchange(node_id, 1))
        await hand_in(host, node_id, 0)
        await host.stop()

    run(half_a_round)
    return made


def open_host(folder: RunFolder) -> Host:
    return Host(folder.manifest, Journal(folder.journal), folder.blobs, ManualClock())


async def hand_in(host: Host, node_id: str, expert: int, round_: int = 1) -> None:
    result = router_result(host.manifest, host.blobs, f"router_round/{expert}/{round_}")
    await host.ask(msg.Exchange(node_id, 1, finished=result, wants_work=False))


def state_of(path: Path) -> HardState:
    folder = RunFolder.open(path)
    journal = Journal(folder.journal)
    try:
        return recover(folder.manifest, journal, 0.0)[0].state
    finally:
        journal.close()


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_a_backup_is_a_run_folder_with_the_same_state(folder: RunFolder, tmp_path: Path) -> None:
    report = backup(folder, tmp_path / "copy")
    state = state_of(tmp_path / "copy")
    assert state == state_of(folder.path)
    assert set(state.finished) == {"router_round/0/1"}
    assert (report.phase, report.events) == ("routing", 6)
    blobs = BlobStore(tmp_path / "copy" / "blobs")
    for digest in needed_blobs(state):
        blobs.verify(digest)
    assert report.blobs == len(list(blobs.digests())) == 4
    assert report.copied == 0
    left_out = {"lock"} | {name for name in files(folder.path) if name.startswith("journal.")}
    assert files(tmp_path / "copy") - {"journal.sqlite"} == files(folder.path) - left_out


def test_keys_stay_the_owners_and_blobs_cost_nothing_on_the_same_disk(
    folder: RunFolder, tmp_path: Path
) -> None:
    backup(folder, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    for name in ("authority/ca.key", "operator/key.pem", "signing.key"):
        assert (tmp_path / "copy" / name).stat().st_mode & 0o777 == 0o600, name
    digest = next(iter(needed_blobs(state_of(folder.path))))
    theirs, ours = BlobStore(folder.blobs), BlobStore(tmp_path / "copy" / "blobs")
    assert theirs.path(digest).samefile(ours.path(digest))
    theirs.drop(digest)
    ours.verify(digest)


def test_where_there_are_no_links_blobs_are_copied(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    assert backup(folder, tmp_path / "copy").copied == 4
    for digest in needed_blobs(state_of(tmp_path / "copy")):
        BlobStore(tmp_path / "copy" / "blobs").verify(digest)


def test_a_backup_made_while_the_run_goes_on_is_of_one_moment(
    folder: RunFolder, tmp_path: Path
) -> None:
    copies = [tmp_path / f"copy {number}" for number in range(8)]

    async def work() -> None:
        host = open_host(folder)
        host.start()
        node_id = next(iter(host.coordinator.state.nodes))
        capabilities = msg.Capabilities(corpus_digest=host.manifest.corpus_digest)
        await host.ask(msg.Join(node_id, 1, 1, b"k" * 32, capabilities))
        backups = asyncio.create_task(
            asyncio.to_thread(lambda: [backup(folder, copy) for copy in copies])
        )
        for number in range(60):
            await host.ask(msg.MakeInvite(f"{number:064d}", 9e9, 1, "meanwhile"))
        await hand_in(host, node_id, 1)
        while host.coordinator.state.round < 2:
            await asyncio.sleep(0.01)
        await backups
        await host.stop()

    run(work)
    for copy in copies:
        state = state_of(copy)
        names = sorted(secret for secret in state.invites if secret.startswith("0" * 62))
        assert names == [f"{number:064d}" for number in range(len(names))]
        for digest in needed_blobs(state):
            BlobStore(copy / "blobs").verify(digest)


def test_a_blob_that_goes_meanwhile_means_a_newer_journal(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the copy of the journal and that of the blobs, the run goes on and drops one."""
    copied = backup_module._copy_journal
    state = state_of(folder.path)
    lost = state.finished["router_round/0/1"].outputs[0].digest
    tries: list[Path] = []

    def then_it_goes(source: Path, target: Path) -> None:
        copied(source, target)
        tries.append(target)
        if len(tries) == 1:
            shutil.move(BlobStore(folder.blobs).path(lost), tmp_path / "aside")
        elif len(tries) == 2:
            shutil.move(tmp_path / "aside", BlobStore(folder.blobs).path(lost))

    monkeypatch.setattr(backup_module, "_copy_journal", then_it_goes)
    backup(folder, tmp_path / "copy")
    assert len(tries) == 2
    BlobStore(tmp_path / "copy" / "blobs").verify(lost)


Harm = Callable[[RunFolder], None]


def lose_a_blob(folder: RunFolder) -> None:
    digest = state_of(folder.path).finished["router_round/0/1"].outputs[0].digest
    BlobStore(folder.blobs).drop(digest)


def damage_a_blob(folder: RunFolder) -> None:
    digest = state_of(folder.path).finished["router_round/0/1"].outputs[0].digest
    path = BlobStore(folder.blobs).path(digest)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def damage_the_journal(folder: RunFolder) -> None:
    """In an event that a restart would not read, since a snapshot covers it."""
    journal = Journal(folder.journal)
    journal.keep_snapshot(journal.last_id, take_snapshot(state_of(folder.path)))
    journal.close()
    database = sqlite3.connect(folder.journal, isolation_level=None)
    database.execute("UPDATE events SET body = replace(body, 'a', 'b') WHERE id = 2")
    database.close()


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (lose_a_blob, DamagedBlob, "no backup was made"),
        (damage_a_blob, DamagedBlob, "is damaged"),
        (damage_the_journal, DamagedJournal, "restore the newest backup"),
    ],
)
def test_a_run_that_is_damaged_gives_no_backup(
    folder: RunFolder, tmp_path: Path, harm: Harm, error: type[WorldError], says: str
) -> None:
    harm(folder)
    with pytest.raises(error, match=says):
        backup(folder, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "run"]


def test_a_target_that_is_in_use_or_inside_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        backup(folder, tmp_path / "used")
    with pytest.raises(UserError, match="is not empty"):
        backup(folder, tmp_path / "used" / "file")
    with pytest.raises(UserError, match="inside the run folder"):
        backup(folder, folder.path / "copy")
    assert json.dumps(sorted(files(tmp_path / "used"))) == '["file"]'
    (tmp_path / "empty").mkdir()
    backup(folder, tmp_path / "empty")
    assert state_of(tmp_path / "empty")
    # What a killed backup left beside is no obstacle.
    (tmp_path / ".next.making").mkdir()
    backup(folder, tmp_path / "next")
    assert not (tmp_path / ".next.making").exists()
