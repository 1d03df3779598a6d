"""The coordinator's durable list of events: SQLite in WAL mode, synchronous=FULL.

Rules: `append` returns when the events are on disk; several events are one transaction; the
rows are never changed. One process owns the file (`RunFolder` holds the lock). It does not
know what events mean.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smalltalk_fed.core.events import Event, from_json, to_json
from smalltalk_fed.errors import WorldError

FORMAT_VERSION = 1


class Journal:
    """An open journal; calls from several threads take turns."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`.

        Raises:
            WorldError: not a journal, damaged, of a newer version, or the disk refuses.
        """
        self.path = path
        self._turn = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS events"
                " (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL,"
                " body TEXT NOT NULL)"
            )
            self._db.execute(
                "INSERT OR IGNORE INTO meta VALUES ('format_version', ?)", (str(FORMAT_VERSION),)
            )
        except sqlite3.Error as error:
            raise self._trouble("opened", error) from None
        version = self.get("format_version")
        if version != FORMAT_VERSION:
            raise WorldError(
                f"{path} has journal format {version}, this version reads {FORMAT_VERSION}; "
                "use the version of smalltalk-fed that wrote it"
            )

    def append(self, events: Sequence[Event]) -> None:
        """Commit `events` in order, in one transaction.

        Raises:
            WorldError: the disk is full or refuses; nothing was written, and the caller must
                stop, because its memory is ahead of the disk.
        """
        if not events:
            return
        rows = [(event.at, *to_json(event)) for event in events]
        with self._turn:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT INTO events (at, kind, body) VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._trouble("written", error) from None

    def events(self) -> Iterator[Event]:
        """All events in order.

        Raises:
            WorldError: a row that can't be read.
        """
        try:
            for kind, body in self._db.execute("SELECT kind, body FROM events ORDER BY id"):
                yield from_json(kind, body)
        except sqlite3.Error as error:
            raise self._trouble("read", error) from None

    def get(self, key: str) -> Any:
        """A value kept beside the events (not part of any state), or None."""
        try:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._trouble("read", error) from None
        return json.loads(row[0]) if row else None

    def put(self, key: str, value: object) -> None:
        """Keep a JSON value beside the events, such as the byte ledger."""
        row = (key, json.dumps(value))
        with self._turn:
            try:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)
            except sqlite3.Error as error:
                raise self._trouble("written", error) from None

    def close(self) -> None:
        """Close the file; further calls fail."""
        with self._turn:
            self._db.close()

    def _trouble(self, verb: str, error: sqlite3.Error) -> WorldError:
        return WorldError(
            f"the journal {self.path} can't be {verb} ({error}); check the disk's space and "
            "permissions, then start again: nothing acknowledged is lost"
        )
