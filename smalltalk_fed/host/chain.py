"""The journal's rows in order, each tied to all before it by a running hash.

Rules: a row's link is the first 16 bytes of SHA-256 over the link before it, the kind and the
body; so a row that was changed, lost or moved is noticed when it is read. Old rows lie in
the archive as compressed batches, with the link at the end of each. Nothing is skipped: a
row that doesn't fit is an error.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.host.database import DamagedJournal
from smalltalk_fed.host.unpacking import unpack

LINK_BYTES = 16
NO_ROWS = b""  # the link before the first row

Row = tuple[int, bytes, bytes]  # id, kind, body


def link(before: bytes, kind: bytes, body: bytes) -> bytes:
    """The link of a row after the row whose link is `before`."""
    return hashlib.sha256(b"%b\0%b\0%b" % (before, kind, body)).digest()[:LINK_BYTES]


@dataclass(frozen=True)
class Point:
    """A place in the chain: the id and link of a row; id 0 is before the first."""

    last_id: int = 0
    chain: bytes = NO_ROWS


def head(db: sqlite3.Connection, path: Path) -> Point:
    """The last row that was committed.

    Raises:
        DamagedJournal: there is no such row.
    """
    row = db.execute("SELECT last_id, chain FROM head").fetchone()
    if row is None:
        raise DamagedJournal(path, "it does not say which event is the last")
    last_id, chain = row
    if type(last_id) is not int or not isinstance(chain, bytes):
        raise DamagedJournal(path, "it does not say which event is the last")
    point = Point(last_id, chain)
    if point != (point_at(db, last_id) if last_id else Point()):
        raise DamagedJournal(path, f"event {last_id} was committed and is not there")
    return point


def point_at(db: sqlite3.Connection, last_id: int) -> Point | None:
    """The place after row `last_id`, if that is a row of the tail or ends an archived batch."""
    for table, column in (("events", "id"), ("archive", "last_id")):
        row = db.execute(f"SELECT chain FROM {table} WHERE {column} = ?", (last_id,)).fetchone()
        if row and isinstance(row[0], bytes):
            return Point(last_id, row[0])
    return None


def rows_after(db: sqlite3.Connection, path: Path, after_id: int) -> Iterator[Row]:
    """All rows after `after_id`, archived ones first, each checked against the chain.

    Raises:
        DamagedJournal: a row is changed, missing or out of order, or the end is not the head.
    """
    end = head(db, path)
    at = _start(db, after_id)
    for row_id, kind, body, chain in _stored(db, path, at.last_id):
        if row_id != at.last_id + 1:
            raise DamagedJournal(path, f"event {at.last_id + 1} is missing")
        found = link(at.chain, kind, body)
        if chain is not None and chain != found:
            raise DamagedJournal(path, f"event {row_id} is not what was written")
        at = Point(row_id, found)
        if row_id > after_id:
            yield row_id, kind, body
    if at != end:
        raise DamagedJournal(path, f"its events end with {at.last_id} instead of {end.last_id}")


def pack(rows: list[Row]) -> bytes:
    """Rows as one compressed batch: a line each, the kind, a space and the body's JSON."""
    return zlib.compress(b"".join(b"%b %b\n" % (kind, body) for _, kind, body in rows))


def _start(db: sqlite3.Connection, after_id: int) -> Point:
    """The nearest place at or before `after_id` that reading can begin at."""
    at = point_at(db, after_id)
    if at:
        return at
    row = db.execute(
        "SELECT last_id, chain FROM archive WHERE last_id <= ? ORDER BY last_id DESC LIMIT 1",
        (after_id,),
    ).fetchone()
    if row and type(row[0]) is int and isinstance(row[1], bytes):
        return Point(*row)
    return Point()  # what is wrong there is found on the way


def _stored(
    db: sqlite3.Connection, path: Path, after_id: int
) -> Iterator[tuple[int, bytes, bytes, bytes | None]]:
    """Rows with the link that is stored beside them; an archived batch has one at its end."""
    batches = db.execute(
        "SELECT first_id, last_id, chain, sha256, body FROM archive WHERE first_id > ?"
        " ORDER BY first_id",
        (after_id,),
    )
    for first_id, last_id, chain, sha256, body in batches:
        what = f"the archive of events {first_id} to {last_id} is not what was written"
        if type(last_id) is not int or not isinstance(body, bytes):
            raise DamagedJournal(path, what)
        if hashlib.sha256(body).digest() != sha256:
            raise DamagedJournal(path, what)
        try:
            lines = unpack(body).split(b"\n")[:-1]
        except ValueError:
            raise DamagedJournal(path, what) from None
        if len(lines) != last_id - first_id + 1:
            raise DamagedJournal(path, what)
        for row_id, line in enumerate(lines, start=first_id):
            kind, _, row_body = line.partition(b" ")
            yield row_id, kind, row_body, chain if row_id == last_id else None
    tail = db.execute(
        "SELECT id, kind, body, chain FROM events WHERE id > ? ORDER BY id", (after_id,)
    )
    for row_id, kind, body, chain in tail:
        if not (isinstance(kind, bytes) and isinstance(body, bytes) and isinstance(chain, bytes)):
            raise DamagedJournal(path, f"event {row_id} is not what was written")
        yield row_id, kind, body, chain
