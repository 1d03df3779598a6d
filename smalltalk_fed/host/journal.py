"""The coordinator's durable list of events: SQLite in WAL mode, synchronous=FULL.

Rules: `append` returns when the events are on disk; several events are one transaction; an
event is never changed or removed. Each is tied to all before it (`chain.py`), so that damage
is noticed when it is read and never passed over. Events that the older of two snapshots
covers move to a compressed archive (`compact`), so that a long run's journal stays small and
restarts fast: the newest snapshot and the events after it are enough. One process owns the
file (`RunFolder` holds the lock); others may read it. It does not know what events mean.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from smalltalk_fed.core.events import Event, from_row, to_json
from smalltalk_fed.host.chain import Point, Row, head, link, pack, rows_after
from smalltalk_fed.host.database import (
    DamagedJournal,
    create_database,
    explained,
    open_database,
    reading,
    transaction,
)
from smalltalk_fed.host.snapshots import KEPT, Snapshot, good_snapshots, write_snapshot

BATCH_EVENTS = 5_000


class JournalLike(Protocol):
    """What the host needs of a journal."""

    @property
    def last_id(self) -> int:
        """Number of the last event; the first is 1, and 0 says that there is none."""
        ...

    @property
    def last_at(self) -> float:
        """Time of the last event in seconds since the epoch; 0 if there is none."""
        ...

    def append(self, events: Sequence[Event]) -> None:
        """Commit `events` in order: all of them or none."""
        ...

    def events(self) -> Iterator[Event]:
        """Every event ever, in order."""
        ...

    def events_after(self, last_id: int) -> Iterator[Event]:
        """The events whose numbers are over `last_id`, in order."""
        ...

    def keep_snapshot(self, up_to: int, data: bytes) -> None:
        """Keep `data` as the state after event `up_to`."""
        ...

    def snapshots(self) -> Iterator[Snapshot]:
        """The undamaged snapshots, newest first."""
        ...

    def compact(self) -> int:
        """Put events that two snapshots cover where they are small; returns how many."""
        ...

    def get(self, key: str) -> Any:
        """A value kept beside the events, or None."""
        ...

    def put(self, key: str, value: object) -> None:
        """Keep a JSON value beside the events."""
        ...

    def close(self) -> None:
        """Further calls fail."""
        ...


class Journal:
    """An open journal file; calls from several threads take turns."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open `path`; make it first if it is not there and `create` is set.

        Raises:
            DamagedJournal: not a journal, or damaged, or gone.
            WorldError: of another version, or the disk refuses.
        """
        self.path = path
        self._turn = threading.Lock()
        if create:
            create_database(path)
        self._db = open_database(path)
        try:
            with explained(path, "opened"):
                self._head = head(self._db, path)
        except BaseException:
            self._db.close()
            raise

    @property
    def last_id(self) -> int:
        """Number of the last event; 0 if there is none."""
        return self._head.last_id

    @property
    def last_at(self) -> float:
        """Time of the last event in seconds since the epoch; 0 if there is none."""
        return max((event.at for event in self.events_after(self.last_id - 1)), default=0.0)

    def append(self, events: Sequence[Event]) -> None:
        """Commit `events` in order, in one transaction.

        Raises:
            WorldError: the disk is full or refuses; nothing was written, and the caller must
                stop, because its memory is ahead of the disk.
        """
        if not events:
            return
        with self._turn:
            rows, point = [], self._head
            for event in events:
                kind, body = to_json(event)
                chain = link(point.chain, kind.encode(), body.encode())
                point = Point(point.last_id + 1, chain)
                rows.append((point.last_id, kind, body, chain))
            with explained(self.path, "written"), transaction(self._db):
                self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
                self._db.execute(
                    "UPDATE head SET last_id = ?, chain = ?", (point.last_id, point.chain)
                )
            self._head = point

    def events(self) -> Iterator[Event]:
        """Every event ever, in order; archived ones too.

        Raises:
            DamagedJournal: an event is not what was written, or missing.
            WorldError: the disk refuses, or an event is of a newer version.
        """
        return self.events_after(0)

    def events_after(self, last_id: int) -> Iterator[Event]:
        """The events whose numbers are over `last_id`, in order; raises as `events`."""
        for _, kind, body in self._rows_after(max(0, last_id)):
            yield from_row(kind, body)

    def verify(self) -> int:
        """Read every event and check it against the chain; returns how many there are.

        Raises:
            DamagedJournal: something is not what was written.
        """
        return sum(1 for _ in self._rows_after(0))

    def keep_snapshot(self, up_to: int, data: bytes) -> None:
        """Keep `data` as the state after event `up_to`, and the good snapshot before it.

        Raises:
            WorldError: the disk refuses; the snapshots are as they were.
        """
        packed = zlib.compress(data)
        with self._turn, explained(self.path, "written"):
            write_snapshot(self._db, self.path, up_to, packed)

    def snapshots(self) -> Iterator[Snapshot]:
        """The undamaged snapshots, newest first; a damaged one is logged.

        Raises:
            WorldError: the disk refuses.
        """
        with explained(self.path, "read"), reading(self.path) as db:
            yield from good_snapshots(db, self.path)

    def latest_snapshot(self) -> Snapshot | None:
        """The newest undamaged snapshot, or None; raises as `snapshots`."""
        return next(self.snapshots(), None)

    def compact(self) -> int:
        """Move events that the older kept snapshot covers to the archive, in whole batches.

        Each batch is a transaction of its own; the pages that become free are used again.

        Returns:
            How many events moved.

        Raises:
            DamagedJournal: an event is not what was written.
            WorldError: the disk refuses; every event is still there, once.
        """
        snapshots = list(self.snapshots())
        moved = 0
        if len(snapshots) == KEPT:
            while rows := self._next_batch(snapshots[-1].up_to):
                self._archive(rows)
                moved += len(rows)
        return moved

    def get(self, key: str) -> Any:
        """A value kept beside the events (not part of any state), or None."""
        with self._turn, explained(self.path, "read"):
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        try:
            return json.loads(row[0]) if row else None
        except (RecursionError, TypeError, ValueError):
            raise DamagedJournal(self.path, f"the value '{key}' can't be read") from None

    def put(self, key: str, value: object) -> None:
        """Keep a JSON value beside the events, such as the byte ledger."""
        row = (key, json.dumps(value))
        with self._turn, explained(self.path, "written"):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)

    def close(self) -> None:
        """Close the file; further calls fail."""
        with self._turn:
            self._db.close()

    # --------------------------------------------------------------------------------- inside

    def _rows_after(self, last_id: int) -> Iterator[Row]:
        with explained(self.path, "read"), reading(self.path) as db:
            yield from rows_after(db, self.path, last_id)

    def _next_batch(self, up_to: int) -> list[Row]:
        """The oldest batch of the tail, checked, if all of it is covered."""
        with explained(self.path, "read"), reading(self.path) as db:
            (done,) = db.execute("SELECT COALESCE(MAX(last_id), 0) FROM archive").fetchone()
            if type(done) is not int:
                raise DamagedJournal(self.path, "its archive does not say where it ends")
            if done + BATCH_EVENTS > up_to:
                return []
            rows = rows_after(db, self.path, done)
            return [row for row, _ in zip(rows, range(BATCH_EVENTS), strict=False)]

    def _archive(self, rows: list[Row]) -> None:
        """Put `rows` into the archive and take them out of the tail, at once."""
        first, last = rows[0][0], rows[-1][0]
        packed = pack(rows)
        sha256 = hashlib.sha256(packed).digest()
        with self._turn, explained(self.path, "written"), transaction(self._db):
            self._db.execute(
                "INSERT INTO archive SELECT ?, id, chain, ?, ? FROM events WHERE id = ?",
                (first, sha256, packed, last),
            )
            self._db.execute("DELETE FROM events WHERE id BETWEEN ? AND ?", (first, last))
