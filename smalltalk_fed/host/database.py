"""The journal's SQLite file: how it is opened, what tables it has, what its errors mean.

Rules: WAL with synchronous=FULL, so that a committed transaction survives a power cut; the
file's structure is checked at every open; text comes out as bytes, since a damaged page may
hold anything. An SQLite error becomes one sentence, of which there are two kinds: the disk
refuses (make room and start again; nothing acknowledged is lost) or the file is damaged
(restore a backup). It does not know what is in the rows.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from smalltalk_fed.errors import WorldError

FORMAT_VERSION = 2
BUSY_S = 5.0  # how long a lock of another process is waited for
WAL_BYTES_MAX = 16 << 20  # what the write-ahead log shrinks to after a checkpoint
_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # The last event, so that rows lost from the end are noticed too.
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), last_id INTEGER NOT NULL,"
    " chain BLOB NOT NULL)",
    "CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL,"
    " chain BLOB NOT NULL)",
    "CREATE TABLE archive (first_id INTEGER PRIMARY KEY, last_id INTEGER NOT NULL,"
    " chain BLOB NOT NULL, sha256 BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE snapshots (up_to INTEGER PRIMARY KEY, chain BLOB NOT NULL,"
    " sha256 BLOB NOT NULL, body BLOB NOT NULL)",
)
# The last is a table or column that is not there.
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_MISMATCH", "SQLITE_ERROR")


class DamagedJournal(WorldError):
    """The journal holds something else than what was committed; nothing of it is skipped."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"the journal {path} is damaged ({what}); check the disk, then restore the newest "
            "backup of the run folder (see `smalltalk-coordinator backup --help`)"
        )


def open_database(path: Path) -> sqlite3.Connection:
    """Open `path` for writing, make the tables of a new one, check the structure of an old one.

    Raises:
        DamagedJournal: not a journal, or its structure is broken.
        WorldError: of another format, or the disk refuses.
    """
    with explained(path, "opened"):
        db = _connect(path)
        try:
            _use_wal(db)
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
            if _empty(db):
                _create(db)
            _check(path, db)
        except BaseException:
            db.close()
            raise
    return db


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as it is now, whatever is written meanwhile."""
    db = _connect(path)
    try:
        db.execute("BEGIN")
        yield db
    finally:
        db.close()


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block's changes are durable at its end, or none is made."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path, verb: str) -> Iterator[None]:
    """Turn an SQLite error of the block into one sentence; `verb`: opened, read, written."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(_DAMAGED):
            raise DamagedJournal(path, str(error)) from None
        raise WorldError(
            f"the journal {path} can't be {verb} ({error}); check the disk's space and "
            "permissions, then start again: nothing acknowledged is lost"
        ) from None


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.text_factory = bytes
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """SQLite does not wait for its turn at this, where several open a new file at once."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _empty(db: sqlite3.Connection) -> bool:
    return not db.execute("SELECT 1 FROM sqlite_master").fetchone()


def _create(db: sqlite3.Connection) -> None:
    with transaction(db):
        if not _empty(db):
            return  # another process was faster
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES ('format_version', ?)", (str(FORMAT_VERSION),))
        db.execute("INSERT INTO head VALUES (1, 0, x'')")


def _check(path: Path, db: sqlite3.Connection) -> None:
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != b"ok":
        raise DamagedJournal(path, " ".join(verdict.decode(errors="replace").split()))
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()
    except sqlite3.OperationalError:  # some other program's database
        row = None
    version = row[0].decode(errors="replace") if row else "unknown"
    if version != str(FORMAT_VERSION):
        raise WorldError(
            f"the journal {path} has format {version}, this version reads {FORMAT_VERSION}; "
            "use the version of smalltalk-fed that wrote it"
        )
