"""Content-addressed bytes on disk: `blobs/ab/abcdef...`, named by their SHA-256.

Rules: a blob is there whole or not at all (written beside, synced, renamed); its name is
checked against its content before it counts, and again when it is read after a restart or a
change of the file; a damaged one is moved aside to `blobs/damaged/`, so that it never counts
again. What is half written lies in `blobs/uploads/` (`uploads.py`). It does not know what a
blob means.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import DamagedBlob, Malformed, Refused
from smalltalk_fed.host.durable import sync
from smalltalk_fed.host.uploads import Upload, Uploads

log = logging.getLogger("smalltalk.blobs")

PART_BYTES = 64 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Stamp = tuple[int, int, int]  # size, mtime_ns, inode: another file has another


class BlobStore:
    """The blobs of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._damaged = folder / "damaged"
        self._uploads = Uploads(folder / "uploads", self._settle, self.has)
        self._verified: dict[str, _Stamp] = {}

    def path(self, digest: str) -> Path:
        """Where the blob lies, whether it is there or not."""
        if not _DIGEST.fullmatch(digest):
            raise Malformed("a blob's name is the 64 hexadecimal digits of its SHA-256")
        return self._folder / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether the blob is there, whole."""
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """Bytes of the blob.

        Raises:
            Refused: it is not there.
        """
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _absent(digest) from None

    def digests(self) -> Iterator[str]:
        """All blobs that are there, in no order."""
        for folder in self._folder.glob("[0-9a-f][0-9a-f]"):
            for path in folder.iterdir():
                if _DIGEST.fullmatch(path.name):
                    yield path.name

    def put(self, name: str, data: bytes) -> BlobRef:
        """Store `data` and return its reference.

        Raises:
            WorldError: the disk refuses; nothing counts.
        """
        digest = hashlib.sha256(data).hexdigest()
        try:
            self.verify(digest)
        except (Refused, DamagedBlob):
            self._uploads.write_own(digest, data)
        return BlobRef(name, digest, len(data))

    def get(self, digest: str) -> bytes:
        """The blob's bytes, checked; small ones only.

        Raises:
            Refused: it is not there.
            DamagedBlob: its bytes are not those of its name; it was moved aside.
        """
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise _absent(digest) from None
        except OSError as error:
            raise self._set_aside(digest, f"can't be read ({error.strerror})") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._set_aside(digest, "is damaged")
        return data

    def need(self, ref: BlobRef) -> bytes:
        """The bytes of a blob that the run counts on.

        Raises:
            DamagedBlob: it is gone, or its bytes are not those of its name.
        """
        try:
            return self.get(ref.digest)
        except Refused:
            raise DamagedBlob(ref.digest, "is gone") from None

    def need_file(self, digest: str) -> Path:
        """Where a blob lies that the run counts on, checked; raises as `need`."""
        try:
            self.verify(digest)
        except Refused:
            raise DamagedBlob(digest, "is gone") from None
        return self.path(digest)

    def verify(self, digest: str) -> None:
        """Check the content against the name, once for every state of the file.

        Raises:
            Refused: it is not there.
            DamagedBlob: its bytes are not those of its name; it was moved aside.
        """
        path = self.path(digest)
        try:
            stamp = _stamp(path)
            if self._verified.get(digest) == stamp:
                return
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise _absent(digest) from None
        except OSError as error:
            raise self._set_aside(digest, f"can't be read ({error.strerror})") from None
        if found != digest:
            raise self._set_aside(digest, "is damaged")
        self._verified[digest] = stamp

    def is_verified(self, digest: str) -> bool:
        """Whether `verify` would have nothing to do."""
        try:
            return self._verified.get(digest) == _stamp(self.path(digest))
        except OSError:
            return False

    def parts(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, in parts of at most `PART_BYTES`; raises as `verify`."""
        self.verify(digest)
        if not 0 <= offset <= self.size(digest):
            raise Malformed(f"offset {offset} is outside blob {digest[:12]}")
        with self.path(digest).open("rb") as file:
            file.seek(offset)
            while part := file.read(PART_BYTES):
                yield part

    def received(self, digest: str) -> int:
        """Bytes of the blob that are there: all of it, or those of an interrupted upload."""
        return self.size(digest) if self.has(digest) else self._uploads.received(digest)

    def upload(self, digest: str, size: int, limit: int) -> Upload:
        """Begin or continue an upload; one of the same blob that is under way ends.

        Raises:
            TooLarge: `size` is over `limit`.
            WorldError: the disk refuses.
        """
        self.path(digest)  # checks the name
        return self._uploads.begin(digest, size, limit)

    def under_way(self, digest: str) -> bool:
        """Whether an upload of the blob is going on now."""
        return self._uploads.under_way(digest)

    def discard(self, digest: str) -> None:
        """Forget what came of an upload that nobody will go on with."""
        self._uploads.discard(digest)

    def drop(self, digest: str) -> None:
        """Remove the blob if it is there."""
        self._verified.pop(digest, None)
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:  # it costs space, no more
            log.warning("blob %s can't be removed (%s)", digest[:12], error.strerror)

    def lost(self, refs: Iterable[BlobRef]) -> list[str]:
        """Digests of `refs` that are not there, or of another size: moved aside."""
        found = []
        for ref in refs:
            if not self.has(ref.digest):
                found.append(ref.digest)
            elif self.size(ref.digest) != ref.size:
                self._set_aside(ref.digest, "has another size than it had")
                found.append(ref.digest)
        return found

    def clean(self) -> None:
        """Remove what a process that died left behind. Only for the folder's one owner."""
        self._uploads.clean()

    def _settle(self, part: Path, digest: str) -> None:
        """Make a whole file count: durable first, then under its name."""
        path = self.path(digest)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            sync(self._folder)
        sync(part)
        part.rename(path)
        sync(path.parent)
        self._verified[digest] = _stamp(path)

    def _set_aside(self, digest: str, what: str) -> DamagedBlob:
        self._verified.pop(digest, None)
        with contextlib.suppress(OSError):  # a disk that can't be written to: it stays
            self._damaged.mkdir(exist_ok=True)
            self.path(digest).replace(self._damaged / digest)
        return DamagedBlob(digest, what)


def _absent(digest: str) -> Refused:
    return Refused(f"the coordinator has no blob {digest[:12]}")


def _stamp(path: Path) -> _Stamp:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
