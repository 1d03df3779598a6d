"""What nodes uploaded and no event names: whose it is, how much is too much, when it goes.

Rules: an upload is noted before its first byte is here, in `uploads/DIGEST.from`, and the note
goes once an event names the blob; so what a kill leaves behind is known after a restart. What
is noted is loose. A node's newer uploads make room by its oldest loose ones: those are of
units that were lost or that others finished first. If all nodes together have too much, who
has most loses its oldest. After `kept_s` a loose blob goes anyway. Some of the disk is left to
the journal. A note that is lost costs the space of one blob, no more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from smalltalk_fed.core import events as ev
from smalltalk_fed.errors import SlowDown, TooLarge, WorldError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.wire.limits import DISK_RESERVE_BYTES, DiskLimits

log = logging.getLogger("smalltalk.blobs")

SWEEP_EVERY_S = 3600.0
RETRY_S = 30.0
_BLOB_FIELDS = ("shares", "outputs", "segments")


@dataclass(frozen=True)
class _Note:
    node_id: str
    size: int  # as announced
    at: float


class Loose:
    """The loose blobs of one store. Not thread-safe; the disk is left to what `admit` returns."""

    def __init__(self, folder: Path, store: BlobStore, allowed: DiskLimits) -> None:
        """`folder` is where `store` keeps uploads under way."""
        self._folder, self._store, self._allowed = folder, store, allowed
        self._notes: dict[str, _Note] = {}  # by digest
        self._of: dict[str, dict[str, _Note]] = {}  # by node and digest, oldest first
        self._bytes = 0
        self._sweep_at = 0.0
        found: dict[str, _Note] = {}
        for path in folder.glob("*.from"):
            try:
                found[path.stem] = _Note(**json.loads(path.read_text()))
            except (OSError, TypeError, ValueError):  # torn by a crash
                with contextlib.suppress(OSError):
                    path.unlink()
        for digest, note in sorted(found.items(), key=lambda entry: entry[1].at):
            self._add(digest, note)

    def admit(self, node_id: str, digest: str, size: int, now: float) -> Callable[[], None]:
        """Make room for an upload of `size` bytes, and note whose it is.

        Returns what is to be done on disk before its first byte is written; any thread may.
        It raises WorldError if the disk refuses or is nearly full.

        Raises:
            TooLarge: it is more than a node may have here at all.
            SlowDown: what would make room is being written now.
        """
        dropped = self._too_old(now)
        known, allowed = self._notes.get(digest), self._allowed
        if known is not None and size <= known.size:  # it goes on; or a copy brings the same
            node_id, size = known.node_id, known.size
            if now - known.at < SWEEP_EVERY_S:
                return lambda: self._on_disk(dropped, size)
        if size > allowed.node_bytes:
            raise TooLarge(
                f"blob {digest[:12]} has {size} bytes; a node may have {allowed.node_bytes} bytes "
                "here that no accepted result names"
            )
        self._remove(digest)  # its time begins anew
        while self._over(node_id, size):
            dropped.append(self._drop_oldest(node_id))
        while self._bytes + size > allowed.total_bytes:
            dropped.append(self._drop_oldest(max(self._of, key=self.bytes_of)))
        note = _Note(node_id, size, now)
        self._add(digest, note)
        return lambda: self._on_disk(dropped, size, digest, note)

    def forget(self, digests: Iterable[str]) -> None:
        """These are named by an event, or are gone: loose no more."""
        for digest in digests:
            if self._remove(digest):
                with contextlib.suppress(OSError):  # a read-only disk; forgotten at the next start
                    self._path(digest).unlink(missing_ok=True)

    def bytes_of(self, node_id: str) -> int:
        """Bytes, as announced, of a node's loose blobs."""
        return sum(note.size for note in self._of.get(node_id, {}).values())

    def blobs_of(self, node_id: str) -> list[str]:
        """Digests of a node's loose blobs, oldest first."""
        return list(self._of.get(node_id, ()))

    # ------------------------------------------------------------------------------- inside

    def _add(self, digest: str, note: _Note) -> None:
        self._notes[digest] = note
        self._of.setdefault(note.node_id, {})[digest] = note
        self._bytes += note.size

    def _remove(self, digest: str) -> bool:
        note = self._notes.pop(digest, None)
        if note is None:
            return False
        self._bytes -= note.size
        theirs = self._of[note.node_id]
        del theirs[digest]
        if not theirs:
            del self._of[note.node_id]
        return True

    def _over(self, node_id: str, size: int) -> bool:
        allowed = self._allowed
        return (
            len(self.blobs_of(node_id)) >= allowed.node_blobs
            or self.bytes_of(node_id) + size > allowed.node_bytes
        )

    def _drop_oldest(self, node_id: str) -> str:
        for digest in self.blobs_of(node_id):
            if not self._store.under_way(digest):
                log.info("upload %s of %s is dropped for newer ones", digest[:12], node_id)
                self._remove(digest)
                return digest
        raise SlowDown(
            f"{node_id} has {self.bytes_of(node_id)} bytes of uploads here that no accepted result "
            f"names, and is writing them still; at most {self._allowed.node_bytes} bytes and "
            f"{self._allowed.node_blobs} blobs of a node may be, and {self._allowed.total_bytes} "
            f"bytes of all; ask again in {RETRY_S:.0f} s",
            RETRY_S,
        )

    def _too_old(self, now: float) -> list[str]:
        """Now and then: what goes because of its age."""
        if now < self._sweep_at:
            return []
        self._sweep_at = now + SWEEP_EVERY_S
        old = [
            digest
            for digest, note in self._notes.items()
            if now - note.at > self._allowed.kept_s and not self._store.under_way(digest)
        ]
        for digest in old:
            log.info("upload %s is dropped: no result named it in time", digest[:12])
            self._remove(digest)
        return old

    def _on_disk(
        self, dropped: list[str], size: int, digest: str = "", note: _Note | None = None
    ) -> None:
        for old in dropped:
            self._store.discard(old)
            self._store.drop(old)
            self._path(old).unlink(missing_ok=True)
        self._leave_a_reserve(size)
        if note is None:
            return
        try:
            self._path(digest).write_text(json.dumps(asdict(note)))
        except OSError as error:
            raise WorldError(
                f"an upload can't be noted ({error.strerror}); make room on the disk and check "
                "its permissions"
            ) from None

    def _leave_a_reserve(self, size: int) -> None:
        usage = shutil.disk_usage(self._folder)
        reserve = min(DISK_RESERVE_BYTES, usage.total // 20)
        if usage.free < size + reserve:
            raise WorldError(
                f"the coordinator's disk has {usage.free / 1e6:.0f} MB left, of which "
                f"{reserve / 1e6:.0f} MB are kept for its journal; make room on it"
            )

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.from"


def named_by(events: Iterable[ev.Event]) -> set[str]:
    """Digests of the blobs that these events name."""
    return {
        ref.digest for event in events for name in _BLOB_FIELDS for ref in getattr(event, name, ())
    }
