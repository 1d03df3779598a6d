"""Journal and blob store against their naive twins, with restarts at any place."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from support.naive_stores import DictBlobs, DictDisk, ListDisk, ListJournal

from smalltalk_fed.core.events import NodeRevoked
from smalltalk_fed.errors import Malformed, Refused, TooLarge, WorldError
from smalltalk_fed.host import journal as journal_module
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.journal import Journal

REFUSALS = (Malformed, Refused, TooLarge, WorldError)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 5)


class JournalMachine(RuleBasedStateMachine):
    """Append, snapshot, compact, crash, close; read anything at any time."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.journal, self.model = Journal(self.folder / "j.sqlite"), ListJournal(ListDisk())

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)

    @rule(count=st.integers(0, 12), text=st.text(max_size=20))
    def append(self, count: int, text: str) -> None:
        events = [NodeRevoked(float(n), "n", text) for n in range(count)]
        self.journal.append(events)
        self.model.append(events)

    @precondition(lambda self: self.model.last_id)
    @rule(data=st.data())
    def keep_snapshot(self, data: st.DataObject) -> None:
        newest = next(self.model.snapshots(), None)
        lowest = newest.up_to if newest else 1  # time goes on
        up_to = data.draw(st.integers(lowest, self.model.last_id))
        body = data.draw(st.binary(max_size=40))
        self.journal.keep_snapshot(up_to, body)
        self.model.keep_snapshot(up_to, body)

    @rule()
    def compact(self) -> None:
        self.journal.compact()

    @rule()
    def close_and_open(self) -> None:
        self.journal.close()
        self.journal = Journal(self.folder / "j.sqlite")

    @rule()
    def crash_and_open(self) -> None:
        """The files as a killed process leaves them: nothing was closed."""
        copy = self.folder / "after the crash"
        copy.mkdir()
        for name in ("j.sqlite", "j.sqlite-wal"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, copy / name)
        self.journal.close()
        for name in ("j.sqlite", "j.sqlite-wal"):
            (self.folder / name).unlink(missing_ok=True)
            if (copy / name).exists():
                (copy / name).rename(self.folder / name)
        copy.rmdir()
        self.journal = Journal(self.folder / "j.sqlite")

    @rule(after=st.integers(0, 60))
    def read_a_tail(self, after: int) -> None:
        after = min(after, self.model.last_id)
        assert list(self.journal.events_after(after)) == list(self.model.events_after(after))

    @invariant()
    def same(self) -> None:
        assert self.journal.last_id == self.model.last_id
        assert self.journal.last_at == self.model.last_at
        assert list(self.journal.events()) == list(self.model.events())
        assert list(self.journal.snapshots()) == list(self.model.snapshots())


class BlobMachine(RuleBasedStateMachine):
    """Put, upload in parts and at odd offsets, drop, restart."""

    CONTENTS = tuple(bytes([n]) * (n * 7) for n in range(1, 5))
    digests = Bundle("digests")

    @initialize(target=digests)
    def begin(self) -> object:
        self.folder = Path(tempfile.mkdtemp())
        self.disk = DictDisk()
        self.restart()
        return multiple(*(hashlib.sha256(data).hexdigest() for data in self.CONTENTS))

    def teardown(self) -> None:
        self._pause_all()
        shutil.rmtree(self.folder)

    @rule()
    def restart(self) -> None:
        if hasattr(self, "uploads"):
            self._pause_all()
        self.blobs, self.model = BlobStore(self.folder / "blobs"), DictBlobs(self.disk)
        self.blobs.clean()
        self.model.clean()
        self.uploads: dict[str, tuple] = {}

    @rule(content=st.sampled_from(CONTENTS))
    def put(self, content: bytes) -> None:
        assert self.blobs.put("x", content) == self.model.put("x", content)

    @rule(digest=digests)
    def drop(self, digest: str) -> None:
        self.blobs.drop(digest)
        self.model.drop(digest)

    @rule(digest=digests, size=st.integers(0, 30), offset=st.integers(0, 30))
    def begin_upload(self, digest: str, size: int, offset: int) -> None:
        if self.model.has(digest):
            return  # as the server does
        pair = [self._try(store.upload, digest, size, 28) for store in (self.blobs, self.model)]
        assert isinstance(pair[0], type) == isinstance(pair[1], type)
        if not isinstance(pair[0], type):
            self._both(pair, "go_on_at", offset)
            self.uploads[digest] = tuple(pair)

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), count=st.integers(0, 30), wrong=st.booleans())
    def write(self, data: st.DataObject, count: int, wrong: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.uploads)))
        pair = self.uploads[digest]
        content = next(c for c in self.CONTENTS if hashlib.sha256(c).hexdigest() == digest)
        part = b"?" * count if wrong else content[pair[1].received :][:count]
        if not self._both(pair, "write", part):
            del self.uploads[digest]

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.uploads)))
        pair = self.uploads.pop(digest)
        pair[0].pause()
        self._both(pair, "finish")

    @invariant()
    def same(self) -> None:
        for content in self.CONTENTS:
            digest = hashlib.sha256(content).hexdigest()
            assert self.blobs.has(digest) == self.model.has(digest)
            assert self.blobs.received(digest) == self.model.received(digest)
            if self.model.has(digest):
                assert self.blobs.get(digest) == content == b"".join(self.blobs.parts(digest, 0))
        assert set(self.blobs.digests()) == set(self.model.digests())

    def _both(self, pair: tuple | list, name: str, *arguments: object) -> bool:
        """Do the same on both; they must agree, also in the error. Whether it was done."""
        outcomes = [self._try(getattr(one, name), *arguments) for one in pair]
        assert outcomes[0] == outcomes[1], (name, arguments, outcomes)
        return outcomes[0] not in REFUSALS

    def _try(self, act: object, *arguments: object) -> object:
        try:
            return act(*arguments)  # type: ignore[operator]
        except REFUSALS as error:
            return type(error)

    def _pause_all(self) -> None:
        for real, _ in self.uploads.values():
            real.pause()


TestJournalAgainstAList = JournalMachine.TestCase
TestJournalAgainstAList.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestBlobsAgainstADictionary = BlobMachine.TestCase
TestBlobsAgainstADictionary.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
