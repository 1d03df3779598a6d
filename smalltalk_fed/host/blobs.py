"""Content-addressed bytes on disk: `blobs/ab/abcdef...`, named by their SHA-256.

Rules: a blob is there whole or not at all (written beside, synced, renamed); its name is
checked against its content before it counts; an interrupted upload goes on at its offset;
sizes are bounded by the caller's limit and by the size announced. It does not know what a
blob means.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, Refused, TooLarge, WorldError

PART_BYTES = 256 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """The blobs of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uploads = folder / "uploads"
        self._uploads.mkdir(parents=True, exist_ok=True)

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
            raise Refused(f"the coordinator has no blob {digest[:12]}") from None

    def put(self, name: str, data: bytes) -> BlobRef:
        """Store `data` and return its reference."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            part = self._uploads / f"{digest}.own"
            try:
                part.write_bytes(data)
                self._settle(part, path)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise _disk(error) from None
        return BlobRef(name, digest, len(data))

    def get(self, digest: str) -> bytes:
        """The blob's bytes; small ones only.

        Raises:
            Refused: it is not there.
        """
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            raise Refused(f"the coordinator has no blob {digest[:12]}") from None

    def parts(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, in parts of at most `PART_BYTES`."""
        if not 0 <= offset <= self.size(digest):
            raise Malformed(f"offset {offset} is outside blob {digest[:12]}")
        with self.path(digest).open("rb") as file:
            file.seek(offset)
            while part := file.read(PART_BYTES):
                yield part

    def received(self, digest: str) -> int:
        """Bytes of the blob that are there: all of it, or those of an interrupted upload."""
        if self.has(digest):
            return self.size(digest)
        part = self._part(digest)
        return part.stat().st_size if part.exists() else 0

    def upload(self, digest: str, size: int, limit: int) -> Upload:
        """Begin or continue an upload.

        Raises:
            TooLarge: `size` is over `limit`.
        """
        if size > limit:
            raise TooLarge(f"blob {digest[:12]} has {size} bytes, the run allows {limit}")
        return Upload(self, digest, size, self._part(digest))

    def drop(self, digest: str) -> None:
        """Remove the blob if it is there."""
        self.path(digest).unlink(missing_ok=True)

    def _part(self, digest: str) -> Path:
        self.path(digest)  # checks the name
        return self._uploads / f"{digest}.part"

    def _settle(self, part: Path, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Upload:
    """An upload under way. `write` parts in order, then `finish`."""

    def __init__(self, store: BlobStore, digest: str, size: int, part: Path) -> None:
        self._store, self._digest, self._size, self._part = store, digest, size, part
        try:
            self._file = part.open("ab")
        except OSError as error:
            raise _disk(error) from None
        self.received = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append a part.

        Raises:
            TooLarge: more bytes than announced.
        """
        if self.received + len(data) > self._size:
            self._discard()
            raise TooLarge(
                f"blob {self._digest[:12]} has more bytes than the {self._size} announced"
            )
        try:
            self._file.write(data)
            self._file.flush()  # a full disk shows here, not when the file is closed
        except OSError as error:
            raise _disk(error) from None
        self.received += len(data)

    def pause(self) -> None:
        """Keep what came so far; a later upload goes on there."""
        with contextlib.suppress(OSError):  # bytes that `write` failed at, and said so
            self._file.close()

    def finish(self) -> BlobRef:
        """Check the digest and make the blob count.

        Raises:
            Malformed: the bytes are not those of the digest; they are discarded.
        """
        self._file.close()
        with self._part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self._digest:
            self._discard()
            raise Malformed(f"the bytes sent as blob {self._digest[:12]} are those of {found[:12]}")
        try:
            self._store._settle(self._part, self._store.path(self._digest))
        except OSError as error:
            raise _disk(error) from None
        return BlobRef("", self._digest, self._size)

    def _discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def _disk(error: OSError) -> WorldError:
    return WorldError(f"a blob can't be written ({error.strerror}); make room on the disk")
