"""A journal's file in which somebody changed cells: other values, of other types.

SQLite holds a value of any type in most columns, so a file that came from elsewhere may. The
input says what is changed: a byte of flags, then changes of a byte each for table, column,
row and the value's type, and the value. With the first flag the running hash over the tail is
made anew, as somebody would who knows the format.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from smalltalk_fed.core import events as ev
from smalltalk_fed.host import journal as journals
from smalltalk_fed.host.chain import link
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.telemetry.ledger import Ledger

CELLS = {
    "meta": ("value",),
    "head": ("last_id", "chain"),
    "events": ("kind", "body", "chain", "id"),
    "archive": ("first_id", "last_id", "chain", "sha256", "body"),
    "snapshots": ("up_to", "chain", "sha256", "body"),
}
RELINK = 1
EVENTS = 12


def journal_seeds() -> tuple[bytes, ...]:
    """Nothing changed; and another ledger."""
    return b"", b"\0" + bytes([0, 0, 1, 2, 2]) + b"[]"


@functools.cache
def _template(place: Path) -> Path:
    """A journal with a tail, archived batches, two snapshots and a ledger."""
    path = place / "template.sqlite"
    journal = Journal(path)
    with mock.patch.object(journals, "BATCH_EVENTS", 3):
        for number in range(EVENTS):
            journal.append([ev.InviteMade(float(number), f"{number:064}", 9.0, 1, "box")])
            if number in (7, 9):
                journal.keep_snapshot(number + 1, b'{"format_version": 1}')
        journal.put("ledger", [])
        journal.compact()
    journal.close()
    return path


def changed_journal(place: Path, data: bytes) -> object:
    """Open the changed journal and read all of it, as a start and an audit do."""
    path = place / "journal.sqlite"
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        name.unlink(missing_ok=True)
    shutil.copyfile(_template(place), path)
    _change(path, data)
    journal = Journal(path, create=False)
    try:
        snapshots = [snapshot.data for snapshot in journal.snapshots()]
        return journal.last_at, list(journal.events()), snapshots, _ledger(journal)
    finally:
        journal.close()


def _ledger(journal: Journal) -> dict[str, int]:
    return Ledger.from_json(journal.get("ledger") or []).totals()


def _change(path: Path, data: bytes) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        for table, column, row, value in _changes(data[1:]):
            with contextlib.suppress(sqlite3.Error):  # such as a key that is there already
                db.execute(
                    f"UPDATE {table} SET {column} = ? WHERE rowid ="
                    f" (SELECT rowid FROM {table} LIMIT 1 OFFSET ?)",
                    (value, row),
                )
        if data[:1] and data[0] & RELINK:
            _relink(db)
    finally:
        db.close()


def _changes(data: bytes) -> Iterator[tuple[str, str, int, object]]:
    tables = tuple(CELLS)
    while len(data) >= 5:
        table = tables[data[0] % len(tables)]
        column = CELLS[table][data[1] % len(CELLS[table])]
        row, kind, size = data[2] % EVENTS, data[3] % 5, data[4]
        raw, data = data[5 : 5 + size], data[5 + size :]
        values: tuple[object, ...] = (
            int.from_bytes(raw[:8], "little", signed=True),
            struct.unpack("<d", raw[:8].ljust(8, b"\0"))[0],
            raw.decode("latin-1"),
            raw,
            None,
        )
        yield table, column, row, values[kind]


def _relink(db: sqlite3.Connection) -> None:
    """The running hash over the tail, from the end of the archive."""
    db.text_factory = bytes
    start = db.execute("SELECT chain FROM archive ORDER BY first_id DESC LIMIT 1").fetchone()
    chain = start[0] if start and isinstance(start[0], bytes) else b""
    for rowid, kind, body in db.execute("SELECT id, kind, body FROM events ORDER BY id").fetchall():
        if isinstance(kind, bytes) and isinstance(body, bytes):
            chain = link(chain, kind, body)
            db.execute("UPDATE events SET chain = ? WHERE id = ?", (chain, rowid))
    db.execute("UPDATE head SET chain = ?", (chain,))
