"""The naive twins of the journal and the blob store: a list and a dictionary.

They pass the same conformance suite as the real ones, and are the model in the stateful
tests. What is "on disk" is handed from one instance to the next, as a file would be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from smalltalk_fed.core.events import Event
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, Refused, TooLarge, WorldError
from smalltalk_fed.host.snapshots import KEPT, Snapshot


@dataclass
class ListDisk:
    """What outlives a `ListJournal`."""

    events: list[Event] = field(default_factory=list)
    snapshots: dict[int, bytes] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


class ListJournal:
    """A journal that is a list."""

    def __init__(self, disk: ListDisk) -> None:
        self._disk = disk

    @property
    def last_id(self) -> int:
        return len(self._disk.events)

    @property
    def last_at(self) -> float:
        return self._disk.events[-1].at if self._disk.events else 0.0

    def append(self, events: Sequence[Event]) -> None:
        self._disk.events += events

    def events(self) -> Iterator[Event]:
        return iter(list(self._disk.events))

    def events_after(self, last_id: int) -> Iterator[Event]:
        return iter(self._disk.events[max(0, last_id) :])

    def keep_snapshot(self, up_to: int, data: bytes) -> None:
        if not 0 < up_to <= self.last_id:
            raise ValueError(f"there is no event {up_to}")
        kept = self._disk.snapshots | {up_to: data}
        self._disk.snapshots = {at: kept[at] for at in sorted(kept)[-KEPT:]}

    def snapshots(self) -> Iterator[Snapshot]:
        kept = self._disk.snapshots
        return iter([Snapshot(up_to, kept[up_to]) for up_to in sorted(kept, reverse=True)])

    def compact(self) -> int:
        return 0

    def get(self, key: str) -> Any:
        return json.loads(self._disk.values.get(key, "null"))

    def put(self, key: str, value: object) -> None:
        self._disk.values[key] = json.dumps(value)

    def close(self) -> None:
        del self._disk


@dataclass
class DictDisk:
    """What outlives a `DictBlobs`."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)


class DictBlobs:
    """A blob store that is a dictionary."""

    def __init__(self, disk: DictDisk) -> None:
        self._disk = disk
        self._uploads: dict[str, DictUpload] = {}

    def has(self, digest: str) -> bool:
        _check_name(digest)
        return digest in self._disk.blobs

    def size(self, digest: str) -> int:
        return len(self.get(digest))

    def digests(self) -> Iterator[str]:
        return iter(list(self._disk.blobs))

    def put(self, name: str, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        self._disk.blobs[digest] = data
        return BlobRef(name, digest, len(data))

    def get(self, digest: str) -> bytes:
        _check_name(digest)
        if digest not in self._disk.blobs:
            raise Refused("no such blob")
        return self._disk.blobs[digest]

    def verify(self, digest: str) -> None:
        self.get(digest)

    def parts(self, digest: str, offset: int) -> Iterator[bytes]:
        data = self.get(digest)
        if not 0 <= offset <= len(data):
            raise Malformed("offset outside the blob")
        yield data[offset:]

    def received(self, digest: str) -> int:
        return len(self._disk.blobs.get(digest, self._disk.parts.get(digest, b"")))

    def upload(self, digest: str, size: int, limit: int) -> DictUpload:
        _check_name(digest)
        if size > limit:
            raise TooLarge(f"the run allows {limit}")
        if digest in self._uploads:
            self._uploads[digest].over = True
        self._uploads[digest] = DictUpload(self._disk, digest, size)
        return self._uploads[digest]

    def drop(self, digest: str) -> None:
        self._disk.blobs.pop(digest, None)

    def lost(self, refs: Iterable[BlobRef]) -> list[str]:
        blobs = self._disk.blobs
        return [r.digest for r in refs if len(blobs.get(r.digest, b"")) != r.size]

    def clean(self) -> None:
        for digest in set(self._disk.parts) & set(self._disk.blobs):
            del self._disk.parts[digest]


class DictUpload:
    """An upload into a dictionary."""

    def __init__(self, disk: DictDisk, digest: str, size: int) -> None:
        self._disk, self._digest, self._size = disk, digest, size
        disk.parts.setdefault(digest, b"")
        self.over = False

    @property
    def received(self) -> int:
        return len(self._disk.parts[self._digest])

    def go_on_at(self, offset: int) -> None:
        if offset > self.received:
            raise WorldError("ask BlobState and go on there")
        self._check()
        self._disk.parts[self._digest] = self._disk.parts[self._digest][:offset]

    def write(self, data: bytes) -> None:
        self._check()
        if self.received + len(data) > self._size:
            self._disk.parts.pop(self._digest)
            self.over = True
            raise TooLarge("more than announced")
        self._disk.parts[self._digest] += data

    def pause(self) -> None:
        pass

    def finish(self) -> BlobRef:
        self._check()
        self.over = True
        data = self._disk.parts.pop(self._digest)
        if hashlib.sha256(data).hexdigest() != self._digest:
            raise Malformed("the bytes are those of another")
        self._disk.blobs[self._digest] = data
        return BlobRef("", self._digest, len(data))

    def _check(self) -> None:
        if self.over:
            raise WorldError("a newer upload goes on")


def _check_name(digest: str) -> None:
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Malformed("no digest")
