"""What the folder of blobs does beside: damage, leftovers of a crash, a full disk."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from pathlib import Path

import pytest

from smalltalk_fed.errors import DamagedBlob, Refused, WorldError
from smalltalk_fed.host import blobs as blobs_module
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.uploads import PART_KEPT_S

DATA = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs")
    store.put("scores", DATA)
    return store


def damage(blobs: BlobStore) -> None:
    """One bit is not what it was; the size is the same."""
    path = blobs.path(DIGEST)
    data = bytearray(path.read_bytes())
    data[12345] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("reader", ["get", "verify", "parts"])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_damaged_blob_is_never_given_out_and_moved_aside(
    blobs: BlobStore, tmp_path: Path, reader: str, reopened: bool
) -> None:
    damage(blobs)
    store = BlobStore(tmp_path / "blobs") if reopened else blobs
    readers = {
        "get": store.get,
        "verify": store.verify,
        "parts": lambda digest: next(store.parts(digest, 0)),
    }
    with pytest.raises(DamagedBlob, match=f"blob {DIGEST[:12]} is damaged; check the coord") as why:
        readers[reader](DIGEST)
    assert why.value.digest == DIGEST
    assert not store.has(DIGEST)
    assert (tmp_path / "blobs" / "damaged" / DIGEST).exists()
    with pytest.raises(Refused):
        readers[reader](DIGEST)
    store.put("scores", DATA)  # made anew
    assert store.get(DIGEST) == DATA


def test_a_blob_is_hashed_once_for_every_state_of_its_file(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest_of = hashlib.file_digest

    def counting(file: object, name: str) -> object:
        hashed.append(name)
        return digest_of(file, name)  # type: ignore[arg-type]

    store = BlobStore(tmp_path / "blobs")
    monkeypatch.setattr(hashlib, "file_digest", counting)
    for _ in range(3):
        assert b"".join(store.parts(DIGEST, 0)) == DATA
    assert len(hashed) == 1
    os.utime(store.path(DIGEST))
    store.verify(DIGEST)
    assert len(hashed) == 2
    blobs.verify(DIGEST)  # what it wrote itself, it knows; but not a file touched since
    assert len(hashed) == 3


def test_a_blob_that_the_run_counts_on_is_damaged_if_it_is_gone(blobs: BlobStore) -> None:
    ref = blobs.put("scores", DATA)
    assert blobs.need(ref) == DATA
    blobs.path(DIGEST).unlink()
    with pytest.raises(DamagedBlob, match="is gone"):
        blobs.need(ref)


def test_the_error_names_its_blob_across_processes() -> None:
    error = pickle.loads(pickle.dumps(DamagedBlob(DIGEST, "is damaged")))
    assert (error.digest, str(error)) == (DIGEST, str(DamagedBlob(DIGEST, "is damaged")))
    assert isinstance(error, WorldError)


def test_a_torn_blob_is_found_at_the_start(blobs: BlobStore, tmp_path: Path) -> None:
    ref = blobs.put("scores", DATA)
    blobs.path(DIGEST).write_bytes(DATA[:-1])
    assert BlobStore(tmp_path / "blobs").lost([ref]) == [DIGEST]
    assert not blobs.has(DIGEST)


def test_leftovers_of_a_crash_never_count_and_are_cleaned(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    other = hashlib.sha256(b"other").hexdigest()
    uploads = tmp_path / "blobs" / "uploads"
    (uploads / f"{DIGEST}.own").write_bytes(DATA)  # whole, and yet it did not count
    (uploads / f"{DIGEST}.part").write_bytes(DATA[:10])
    (uploads / f"{other}.part").write_bytes(b"oth")
    store.clean()
    assert not store.has(DIGEST)
    assert sorted(path.name for path in uploads.iterdir()) == sorted(
        [f"{DIGEST}.part", f"{other}.part"]
    )
    store.put("other", b"other")
    store.clean()
    assert [path.name for path in uploads.iterdir()] == [f"{DIGEST}.part"]
    old = time.time() - PART_KEPT_S - 60
    os.utime(uploads / f"{DIGEST}.part", (old, old))
    store.clean()
    assert list(uploads.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_sentence_and_nothing_counts(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    (tmp_path / "blobs" / "uploads" / f"{DIGEST}.part").symlink_to("/dev/full")
    upload = blobs.upload(DIGEST, len(DATA), len(DATA))
    with pytest.raises(WorldError, match="make room on the disk"):
        upload.write(DATA[:100])
    upload.pause()  # as the server does whatever happened
    assert not blobs.has(DIGEST)


def test_two_processes_that_write_the_same_blob_do_not_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed coordinator's worker lives on for a moment, beside the new one's."""
    orphan, worker = BlobStore(tmp_path / "blobs"), BlobStore(tmp_path / "blobs")
    sync, begun = blobs_module.sync, []

    def meanwhile(path: Path) -> None:
        if path.is_file() and not begun:
            begun.append(path)
            worker.put("share", DATA)
            assert path.read_bytes() == DATA
        sync(path)

    monkeypatch.setattr(blobs_module, "sync", meanwhile)
    assert orphan.put("share", DATA).digest == DIGEST
    assert worker.get(DIGEST) == DATA
