"""Blobs that are not whole yet: uploads under way, and what the host itself is writing.

Rules: a file here never counts as a blob; it is checked against its digest, made durable and
renamed when it is whole. An interrupted upload goes on at its offset, also after a restart.
A blob has one upload at a time: a new one (of a node that lost its connection) ends the one
before. Sizes are bounded by the caller's limit and by the size announced.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, TooLarge, WorldError

PART_KEPT_S = 7 * 86400.0  # for so long an interrupted upload may go on

Settle = Callable[[Path, str], None]  # makes a whole file count as the blob of this digest


class Uploads:
    """The folder of half-written blobs."""

    def __init__(self, folder: Path, settle: Settle, is_whole: Callable[[str], bool]) -> None:
        self._folder, self._settle, self._is_whole = folder, settle, is_whole
        self._open: dict[str, Upload] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def received(self, digest: str) -> int:
        """Bytes of an upload that was begun; 0 if there is none."""
        try:
            return self._part(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, digest: str, size: int, limit: int) -> Upload:
        """Begin or continue an upload (see `BlobStore.upload`)."""
        if size > limit:
            raise TooLarge(f"blob {digest[:12]} has {size} bytes, the run allows {limit}")
        earlier = self._open.get(digest)
        if earlier is not None and not earlier.end():
            raise WorldError(f"blob {digest[:12]} is being written now; ask again in a moment")
        self._open = {known: upload for known, upload in self._open.items() if not upload.over}
        upload = Upload(digest, size, self._part(digest), self._finish)
        self._open[digest] = upload
        return upload

    def under_way(self, digest: str) -> bool:
        """Whether an upload of the blob is going on now."""
        upload = self._open.get(digest)
        return upload is not None and upload.going_on

    def discard(self, digest: str) -> None:
        """Forget what came of an upload that nobody will go on with."""
        self._open.pop(digest, None)
        with contextlib.suppress(OSError):  # it costs space, no more
            self._part(digest).unlink(missing_ok=True)

    def write_own(self, digest: str, data: bytes) -> None:
        """Store bytes that are all here and are those of `digest`."""
        # A name of its own: the worker of a coordinator that was killed may be at the same blob.
        part = self._folder / f"{digest}.{secrets.token_hex(4)}.own"
        try:
            with _disk():
                part.write_bytes(data)
                self._settle(part, digest)
        except WorldError:
            with contextlib.suppress(OSError):  # a read-only disk; `clean` comes later
                part.unlink(missing_ok=True)
            raise

    def clean(self) -> None:
        """Remove what nobody will go on with; raises WorldError if the disk refuses."""
        oldest = time.time() - PART_KEPT_S
        with _disk():
            for own in self._folder.glob("*.own"):
                own.unlink()
            for part in self._folder.glob("*.part"):
                if part.stat().st_mtime < oldest or self._is_whole(part.stem):
                    part.unlink()

    def _finish(self, part: Path, digest: str) -> None:
        if not part.exists() and self._is_whole(digest):
            return  # the upload before this one was just being finished
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            part.unlink()
            raise Malformed(f"the bytes sent as blob {digest[:12]} are those of {found[:12]}")
        self._settle(part, digest)

    def _part(self, digest: str) -> Path:
        return self._folder / f"{digest}.part"


class Upload:
    """An upload under way. `write` parts in order, then `finish`; `pause` in any case."""

    def __init__(self, digest: str, size: int, part: Path, finish: Settle) -> None:
        self._digest, self._size, self._part, self._finish = digest, size, part, finish
        self._turn = threading.Lock()
        self.over = False  # finished, discarded, or ended by a newer one
        with _disk():
            self._file = part.open("ab")
        self.received = self._file.tell()

    def go_on_at(self, offset: int) -> None:
        """Begin at `offset`, which is where the sender goes on; later bytes come again.

        Raises:
            WorldError: bytes before `offset` are not here; the sender must ask again.
        """
        if offset > self.received:
            raise WorldError(
                f"the upload begins at byte {offset}, {self.received} bytes are here; ask "
                "BlobState and go on there"
            )
        with self._taking(), _disk():
            self._file.truncate(offset)
            self.received = offset

    def write(self, data: bytes) -> None:
        """Append a part.

        Raises:
            TooLarge: more bytes than announced; what came is discarded.
            WorldError: a newer upload of the blob goes on, or the disk refuses; what came
                before is kept.
        """
        with self._taking(), _disk():
            if self.received + len(data) > self._size:
                self.over = True
                self.pause()
                self._part.unlink(missing_ok=True)
                raise TooLarge(
                    f"blob {self._digest[:12]} has more bytes than the {self._size} announced"
                )
            self._file.write(data)
            self._file.flush()  # a full disk shows here, not when the file is closed
            self.received += len(data)

    @property
    def going_on(self) -> bool:
        """Whether more of it may come, or is being checked."""
        return not self.over and not self._file.closed

    def pause(self) -> None:
        """Keep what came so far; a later upload goes on there."""
        with contextlib.suppress(OSError):  # bytes that `write` failed at, and said so
            self._file.close()

    def end(self) -> bool:
        """Another upload wants to take over; False if this one is writing at the moment."""
        if not self._turn.acquire(blocking=False):
            return False
        self.over = True
        self.pause()
        self._turn.release()
        return True

    def finish(self) -> BlobRef:
        """Check the digest and make the blob count.

        Raises:
            Malformed: the bytes are not those of the digest; they are discarded.
            WorldError: a newer upload of the blob goes on, or the disk refuses.
        """
        with self._taking(), _disk():
            self._file.close()
            self.over = True
            self._finish(self._part, self._digest)
        return BlobRef("", self._digest, self.received)

    @contextlib.contextmanager
    def _taking(self) -> Iterator[None]:
        with self._turn:
            if self.over:
                raise WorldError(f"a newer upload of blob {self._digest[:12]} goes on")
            yield


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorldError(
            f"a blob can't be written ({error.strerror}); make room on the disk and check "
            "its permissions"
        ) from None
