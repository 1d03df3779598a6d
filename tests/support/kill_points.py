"""Every place where a coordinator writes, numbered, so that a test can kill it at each.

`install` puts a point between any two steps that change the disk, in journal, blob store and
mixture: before a transaction, in it before its COMMIT, after the COMMIT and before the
answer; after every part of a blob, before it is renamed, after that and before it counts,
before and after one is dropped. The product knows nothing of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smalltalk_fed.host import assemble, blobs, database, journal, snapshots, uploads

LABEL_CHARS = 12  # of a digest


@dataclass
class Points:
    """Counts the points of a coordinator and its worker, and kills both at one of them.

    Labels go to the file `labels`, a line a point; only those with `only` in them count.
    """

    kill_at: int
    labels: Path
    only: str = ""
    coordinator: int = field(default_factory=os.getpid)  # its process id

    def reach(self, label: str) -> None:
        """One more point; there may be nothing after it."""
        if self.only not in label:
            return
        with self.labels.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = file.read().count(b"\n") + 1
            file.write(f"{label}\n".encode())
        if number == self.kill_at:
            for process in dict.fromkeys((self.coordinator, os.getpid())):
                os.kill(process, signal.SIGKILL)


def install(points: Points) -> None:
    """From now on this process reaches points."""
    around = functools.partial(_around, points.reach)
    before, after = functools.partial(around, after=False), functools.partial(around, before=False)
    around(journal.Journal, "append", lambda self, events: f"append {_kinds(events)}")
    around(journal.Journal, "keep_snapshot", lambda self, up_to, data: f"snapshot at {up_to}")
    around(journal.Journal, "_archive", lambda self, rows: f"archive {rows[0][0]}..{rows[-1][0]}")
    around(journal.Journal, "put", lambda self, key, value: f"put {key}")
    for module in (database, journal, snapshots):
        module.transaction = _committing(points.reach, module.transaction)  # type: ignore[attr-defined]
    after(uploads.Uploads, "begin", lambda self, digest, *_: f"begin {_short(digest)}")
    after(uploads.Upload, "write", lambda self, data: f"write {_short(self._digest)}")
    after(uploads.Upload, "finish", lambda self: f"finish {_short(self._digest)}")
    around(uploads.Uploads, "write_own", lambda self, digest, data: f"own {_short(digest)}")
    before(blobs, "sync", lambda path: f"sync {_short(path.name)}")
    around(blobs.BlobStore, "drop", lambda self, digest: f"drop {_short(digest)}")
    before(assemble, "_place", lambda store, digest, target: f"place {target.name}")
    around(assemble, "write_mixture_manifest", lambda folder, manifest: "mixture.json")
    before(assemble, "sync", lambda path: "sync of the mixture's name")
    around(assemble, "assemble_mixture", lambda *_: "mixture")


def _around(
    reach: Callable[[str], None],
    owner: Any,
    name: str,
    label: Callable[..., str],
    *,
    before: bool = True,
    after: bool = True,
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*arguments: Any) -> Any:
        said = label(*arguments)
        if before:
            reach(f"before {said}")
        result = original(*arguments)
        if after:
            reach(f"after {said}")
        return result

    setattr(owner, name, wrapper)


def _committing(
    reach: Callable[[str], None],
    original: Callable[[sqlite3.Connection], contextlib.AbstractContextManager[None]],
) -> Callable[[sqlite3.Connection], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def transaction(db: sqlite3.Connection) -> Iterator[None]:
        with original(db):
            yield
            reach("written, not committed")

    return transaction


def _kinds(events: Any) -> str:
    names = [getattr(event, "unit_id", "") or type(event).__name__ for event in events]
    return ", ".join(names)


def _short(digest: str) -> str:
    return digest[:LABEL_CHARS]
