"""Blobs that this node has at hand, by digest: what it made or fetched, up to a size.

Rules: a file is there whole or not at all, and its digest is checked when it is used; the
least recently used go first when the limit is passed, never the one just asked for nor those
that a unit in work needs together (all routers, to divide a slice, may be more than that). A
router that this node trained is in here when its next round begins, and need not travel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import WorldError

CACHE_BYTES_MAX = 8 << 30


def ref_of(name: str, source: bytes | Path) -> BlobRef:
    """Name, digest and size of bytes or a file."""
    if isinstance(source, bytes):
        return BlobRef(name, hashlib.sha256(source).hexdigest(), len(source))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return BlobRef(name, digest, file.tell())


class BlobCache:
    """Files of one folder, one caller at a time."""

    def __init__(self, folder: Path, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self.folder, self._bytes_max = folder, bytes_max
        self._needed: frozenset[str] = frozenset()

    def need(self, refs: Iterable[BlobRef]) -> None:
        """These are needed together: they stay, however many, until others are."""
        self._needed = frozenset(ref.digest for ref in refs)

    def get(self, ref: BlobRef, fetch: Callable[[BlobRef, Path], object]) -> Path:
        """The blob's file; `fetch(ref, path)` brings it when it is not here."""
        path = self.folder / ref.digest
        if not self.has(ref):
            fetch(ref, path)
            self._make_room(keep=path)
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def has(self, ref: BlobRef) -> bool:
        """Whether the blob is here and undamaged; a damaged one is removed."""
        path = self.folder / ref.digest
        if not path.exists():
            return False
        if ref_of(ref.name, path) == ref:
            return True
        path.unlink(missing_ok=True)
        return False

    def put(self, ref: BlobRef, source: bytes | Path) -> Path:
        """Keep bytes, or a file that is replaced but never changed (a link to it is enough).

        Raises:
            WorldError: the disk refuses.
        """
        path = self.folder / ref.digest
        part = path.with_name(f"{path.name}.own")
        try:
            if isinstance(source, bytes):
                part.write_bytes(source)
            else:
                _link_or_copy(source, part)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise WorldError(f"{path} can't be written ({error.strerror or error}).") from error
        self._make_room(keep=path)
        return path

    def shed(self, nbytes: int) -> int:
        """Remove the least recently used until so many bytes are free; returns how many are."""
        freed = 0
        for stat, path in self._files():
            if freed >= nbytes:
                break
            path.unlink(missing_ok=True)
            freed += stat.st_size if stat.st_nlink == 1 else 0
        return freed

    def _make_room(self, keep: Path) -> None:
        files = self._files()
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if total <= self._bytes_max:
                break
            if path != keep and path.name not in self._needed:
                path.unlink(missing_ok=True)
                total -= stat.st_size

    def _files(self) -> list[tuple[os.stat_result, Path]]:
        """The least recently used first."""
        files = [(path.stat(), path) for path in self.folder.iterdir() if path.is_file()]
        return sorted(files, key=lambda entry: entry[0].st_mtime)


def _link_or_copy(source: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, to)
