"""A journal that is damaged says so; it never gives back something else than was committed."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from smalltalk_fed.core.events import Event, NodeRevoked
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host import journal as journal_module
from smalltalk_fed.host.database import DamagedJournal
from smalltalk_fed.host.journal import Journal

EVENTS = [NodeRevoked(float(n), f"n-{n}", f"why {n}" * 20) for n in range(1, 121)]
PAGE_BYTES = 4096
STATE = b"the state at an event" * 300  # more than a page


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal of 120 events: 80 in two archived batches, two snapshots, a tail."""
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 40)
    journal = Journal(tmp_path / "j.sqlite")
    for first in range(0, 120, 30):
        journal.append(EVENTS[first : first + 30])
    journal.keep_snapshot(90, STATE + b"90")
    journal.keep_snapshot(110, STATE + b"110")
    assert journal.compact() == 80
    journal.close()
    return tmp_path / "j.sqlite"


def read(path: Path) -> tuple[list[Event], list[tuple[int, bytes]]]:
    """All that a restart and an audit would read."""
    journal = Journal(path)
    try:
        return list(journal.events()), [(s.up_to, s.data) for s in journal.snapshots()]
    finally:
        journal.close()


def change(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        assert database.execute(statement).rowcount != 0, statement
    database.close()


WHOLE = (EVENTS, [(110, STATE + b"110"), (90, STATE + b"90")])


def test_an_undamaged_one_reads_whole(path: Path) -> None:
    assert read(path) == WHOLE
    journal = Journal(path)
    assert journal.verify() == 120
    assert list(journal.events_after(110)) == EVENTS[110:]
    journal.close()


@pytest.mark.parametrize("how", ["overwritten", "zeroed", "one bit", "taken from elsewhere"])
def test_no_page_can_be_damaged_without_notice(path: Path, tmp_path: Path, how: str) -> None:
    good = path.read_bytes()
    noticed = 0
    for start in range(0, len(good), PAGE_BYTES):
        page = bytearray(good[start : start + PAGE_BYTES])
        match how:
            case "overwritten":
                page[1000:1400] = b"\xa5" * 400
            case "zeroed":
                page[:] = bytes(PAGE_BYTES)
            case "one bit":
                page[-37] ^= 4
            case _:
                page[:] = good[-PAGE_BYTES:] if start else good[PAGE_BYTES : 2 * PAGE_BYTES]
        damaged = tmp_path / "damaged.sqlite"
        damaged.write_bytes(good[:start] + page + good[start + PAGE_BYTES :])
        sentence, events, snapshots = "", EVENTS, []
        try:
            events, snapshots = read(damaged)
        except WorldError as error:
            sentence = str(error)
        noticed += bool(sentence)
        assert not sentence or "restore the newest backup" in sentence or "version" in sentence
        assert "\n" not in sentence
        assert events == EVENTS  # the bytes were free, or those of a snapshot
        assert set(snapshots) <= set(WHOLE[1])
        for leftover in tmp_path.glob("damaged.sqlite-*"):
            leftover.unlink()
    assert noticed >= 3


def test_a_broken_page_is_noticed_at_the_start_even_if_nobody_would_read_it(path: Path) -> None:
    """A restart from a snapshot reads no archive; that it is broken is said all the same."""
    database = sqlite3.connect(path)
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'archive'"
    (page,) = database.execute(query).fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(data)
    with pytest.raises(DamagedJournal, match="restore the newest backup"):
        Journal(path)


def test_a_truncated_file_is_noticed(path: Path, tmp_path: Path) -> None:
    good = path.read_bytes()
    for length in range(PAGE_BYTES, len(good), PAGE_BYTES):
        cut = tmp_path / "cut.sqlite"
        cut.write_bytes(good[: length - 100])
        with pytest.raises(DamagedJournal, match="restore the newest backup"):
            read(cut)
        for leftover in tmp_path.glob("cut.sqlite-*"):
            leftover.unlink()


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["UPDATE events SET body = replace(body, 'why 95', 'why 96') WHERE id = 95"], "event 95"),
        (["UPDATE events SET kind = 'NodeJoined' WHERE id = 95"], "event 95 is not what"),
        (["UPDATE events SET body = 7 WHERE id = 95"], "event 95 is not what"),
        (["DELETE FROM events WHERE id = 95"], "event 95 is missing"),
        (["DELETE FROM events WHERE id = 81"], "event 81 is missing"),
        (["DELETE FROM events WHERE id = 120"], "event 120 was committed and is not there"),
        (["DELETE FROM events WHERE id > 100"], "event 120 was committed and is not there"),
        (["DELETE FROM events"], "event 120 was committed and is not there"),
        (["DELETE FROM head"], "which event is the last"),
        (["UPDATE head SET last_id = 119"], "event 119 was committed and is not there"),
        (
            ["UPDATE head SET last_id = 119, chain = (SELECT chain FROM events WHERE id = 119)"],
            "its events end with 120 instead of 119",
        ),
        (
            [
                "UPDATE events SET id = 1000 WHERE id = 95",
                "UPDATE events SET id = 95 WHERE id = 96",
                "UPDATE events SET id = 96 WHERE id = 1000",
            ],
            "event 95 is not what",
        ),
        (["DELETE FROM archive WHERE first_id = 1"], "event 1 is missing"),
        (["DELETE FROM archive WHERE first_id = 41"], "event 41 is missing"),
        (["UPDATE archive SET body = x'00' WHERE first_id = 41"], "archive of events 41 to 80"),
        (["UPDATE archive SET last_id = 79 WHERE first_id = 41"], "archive of events 41 to 79"),
        (
            [
                "UPDATE archive SET (body, sha256) ="
                " (SELECT body, sha256 FROM archive WHERE first_id = 1) WHERE first_id = 41"
            ],
            "event 80 is not what",
        ),
        (["DROP TABLE archive"], "restore the newest backup"),
    ],
)
def test_a_row_that_is_changed_missing_or_moved_is_named(
    path: Path, statements: list[str], says: str
) -> None:
    change(path, *statements)
    with pytest.raises(DamagedJournal, match=says):
        read(path)


@pytest.mark.parametrize(
    "torn",
    [
        "UPDATE snapshots SET body = substr(body, 1, length(body) / 2) WHERE up_to = 110",
        "UPDATE snapshots SET body = zeroblob(length(body)) WHERE up_to = 110",
        "UPDATE snapshots SET chain = x'00' WHERE up_to = 110",
        "UPDATE snapshots SET up_to = 111 WHERE up_to = 110",
    ],
)
def test_a_torn_snapshot_is_passed_over_with_a_warning(
    path: Path, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(path, torn)
    with caplog.at_level(logging.WARNING, "smalltalk.journal"):
        journal = Journal(path)
        latest = journal.latest_snapshot()
    assert latest is not None
    assert (latest.up_to, latest.data) == WHOLE[1][1]
    assert "is damaged; the one before it is used" in caplog.text
    assert list(journal.events_after(latest.up_to)) == EVENTS[90:]
    # The next one makes two good ones again.
    journal.keep_snapshot(120, b"new")
    assert [snapshot.up_to for snapshot in journal.snapshots()] == [120, 90]
    journal.close()


def test_with_all_snapshots_torn_the_events_are_still_there(path: Path) -> None:
    change(path, "UPDATE snapshots SET body = x'00'")
    assert read(path) == (EVENTS, [])


@pytest.mark.parametrize(
    ("version", "says"), [("99", "has format 99"), ("1", "has format 1, this version reads 2")]
)
def test_another_version_s_journal_is_refused(path: Path, version: str, says: str) -> None:
    change(path, f"UPDATE meta SET value = '{version}' WHERE key = 'format_version'")
    with pytest.raises(WorldError, match=says):
        Journal(path)


def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    change(tmp_path / "other.sqlite", "CREATE TABLE theirs (a)")
    with pytest.raises(WorldError, match="format unknown"):
        Journal(tmp_path / "other.sqlite")


def test_a_journal_that_is_gone_or_empty_is_not_begun_anew(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(DamagedJournal, match="it is empty"):
        Journal(path)
    path.unlink()
    with pytest.raises(DamagedJournal, match="it is gone"):
        Journal(path, create=False)
    assert not path.exists()


def test_a_file_that_is_no_journal_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(DamagedJournal, match="file is not a database"):
        Journal(path)


def test_damage_in_old_events_stops_compaction_and_moves_nothing(path: Path) -> None:
    change(path, "UPDATE events SET body = '{}' WHERE id = 85")
    journal = Journal(path)
    journal.append(EVENTS)
    journal.keep_snapshot(200, STATE)
    journal.keep_snapshot(240, STATE)
    with pytest.raises(DamagedJournal, match="event 85"):
        journal.compact()
    journal.close()
    database = sqlite3.connect(path)
    assert database.execute("SELECT COUNT(*) FROM events").fetchone() == (160,)
    database.close()


def test_one_snapshot_alone_is_not_leant_on(path: Path) -> None:
    """The events that the newest snapshot covers stay until there is a second one behind it."""
    change(path, "DELETE FROM snapshots")
    journal = Journal(path)
    journal.append(EVENTS)
    journal.keep_snapshot(240, STATE)
    assert journal.compact() == 0
    journal.keep_snapshot(200, STATE)
    assert journal.compact() == 120
    assert list(journal.events()) == EVENTS * 2
    journal.close()


def test_compaction_keeps_the_file_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 500)
    sizes: dict[str, int] = {}
    for name, compacted in (("plain", False), ("compacted", True)):
        journal = Journal(tmp_path / name)
        for number in range(20):
            journal.append([NodeRevoked(float(number), "n", "why " * 50)] * 500)
            if compacted:
                journal.keep_snapshot(journal.last_id, b"state")
                journal.compact()
        journal.close()
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["compacted"] < sizes["plain"] / 3
