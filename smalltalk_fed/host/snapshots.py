"""Snapshots in the journal's file: the state at some event, so that a restart is short.

Rules: a snapshot is an aid, never the truth: the events before it are kept. The last two
good ones are kept; one that is damaged is passed over with a warning, and the one before it
or the events themselves are used. What a snapshot's bytes mean is the caller's matter.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.host.chain import Point, point_at
from smalltalk_fed.host.database import transaction
from smalltalk_fed.host.unpacking import unpack

log = logging.getLogger("smalltalk.journal")

KEPT = 2


@dataclass(frozen=True)
class Snapshot:
    """The state after the event `up_to`, as bytes."""

    up_to: int
    data: bytes


def good_snapshots(db: sqlite3.Connection, path: Path) -> Iterator[Snapshot]:
    """Undamaged snapshots of this journal, newest first."""
    rows = db.execute("SELECT up_to, chain, sha256, body FROM snapshots ORDER BY up_to DESC")
    for up_to, chain, sha256, body in rows:
        data = _whole(body, sha256) if point_at(db, up_to) == Point(up_to, chain) else None
        if data is not None:
            yield Snapshot(up_to, data)
        else:
            log.warning(
                "the snapshot at event %s in %s is damaged; the one before it is used", up_to, path
            )


def write_snapshot(db: sqlite3.Connection, path: Path, up_to: int, packed: bytes) -> None:
    """Add a snapshot (compressed) in one transaction, and drop all but the newest good ones."""
    point = point_at(db, up_to)
    if point is None:
        raise ValueError(f"there is no event {up_to} to take a snapshot at")
    with transaction(db):
        db.execute(
            "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)",
            (up_to, point.chain, hashlib.sha256(packed).digest(), packed),
        )
        kept = [snapshot.up_to for snapshot in good_snapshots(db, path)][:KEPT]
        db.execute(f"DELETE FROM snapshots WHERE up_to NOT IN ({','.join('?' * len(kept))})", kept)


def _whole(body: object, sha256: object) -> bytes | None:
    """What a snapshot's body holds; None if it is not what was written."""
    if not isinstance(body, bytes) or hashlib.sha256(body).digest() != sha256:
        return None
    try:
        return unpack(body)
    except ValueError:
        return None
