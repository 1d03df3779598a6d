"""The journal's SQLite file: how it is opened, what tables it has, what its errors mean.

Rules: WAL with synchronous=FULL, so that a committed transaction survives a power cut; the
file's structure is checked at every open; text comes out as bytes, since a damaged page may
hold anything. An SQLite error becomes one sentence, of which there are two kinds: the disk
refuses (make room and start again; nothing acknowledged is lost) or the file is damaged
(restore a backup). It does not know what is in the rows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from smalltalk_fed.errors import WorldError, shown
from smalltalk_fed.host.durable import sync

FORMAT_VERSION = 2
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


def create_database(path: Path) -> None:
    """Make an empty journal, if there is none: whole or not at all.

    Raises:
        WorldError: the disk refuses.
    """
    if path.exists():
        return
    making = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.making")
    try:
        making.unlink(missing_ok=True)
        with explained(path, "made"), contextlib.closing(_connect(making)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            with transaction(db):
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO meta VALUES ('format_version', ?)", (str(FORMAT_VERSION),))
                db.execute("INSERT INTO head VALUES (1, 0, x'')")
        sync(making)
        _name(making, path)
        sync(path.parent)
    except OSError as error:
        raise WorldError(f"the journal {path} can't be made ({error.strerror}).") from None
    finally:
        with contextlib.suppress(OSError):
            making.unlink(missing_ok=True)


def open_database(path: Path) -> sqlite3.Connection:
    """Open `path` for writing and check its structure.

    Raises:
        DamagedJournal: not a journal, its structure is broken, or it is gone.
        WorldError: of another format, or the disk refuses.
    """
    if not path.exists():
        raise DamagedJournal(path, "it is gone")
    with explained(path, "opened"):
        db = _connect(path)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
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
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.text_factory = bytes
    return db


def _name(making: Path, path: Path) -> None:
    """Give a whole file its name, unless another process was faster."""
    try:
        os.link(making, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        making.rename(path)


def _check(path: Path, db: sqlite3.Connection) -> None:
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != b"ok":
        said = " ".join(verdict.decode(errors="replace").split())
        raise DamagedJournal(path, shown(said, 300))
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()
    except sqlite3.OperationalError:  # some other program's database
        row = None
    known = row is not None and isinstance(row[0], bytes)
    version = shown(row[0].decode(errors="replace"), 20) if known else "unknown"
    if not row and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise DamagedJournal(path, "it is empty")
    if version != str(FORMAT_VERSION):
        raise WorldError(
            f"the journal {path} has format {version}, this version reads {FORMAT_VERSION}; "
            "use the version of smalltalk-fed that wrote it"
        )
