"""Blobs are named by their content, whole or not there, and uploads go on where they stopped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.errors import Malformed, Refused, TooLarge, WorldError
from smalltalk_fed.host.blobs import BlobStore

DATA = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_what_was_put_can_be_got(blobs: BlobStore) -> None:
    ref = blobs.put("scores", DATA)
    assert (ref.name, ref.digest, ref.size) == ("scores", DIGEST, len(DATA))
    assert blobs.get(DIGEST) == DATA
    assert blobs.put("again", DATA).digest == DIGEST
    blobs.drop(DIGEST)
    assert not blobs.has(DIGEST)
    blobs.drop(DIGEST)


@given(cut=st.integers(0, len(DATA)), offset=st.integers(0, len(DATA)))
def test_an_upload_goes_on_at_its_offset_and_parts_at_theirs(
    tmp_path_factory: pytest.TempPathFactory, cut: int, offset: int
) -> None:
    blobs = BlobStore(tmp_path_factory.mktemp("blobs"))
    upload = blobs.upload(DIGEST, len(DATA), len(DATA))
    upload.write(DATA[:cut])
    upload.pause()
    assert blobs.received(DIGEST) == cut
    assert not blobs.has(DIGEST)
    again = blobs.upload(DIGEST, len(DATA), len(DATA))
    assert again.received == cut
    again.write(DATA[cut:])
    again.finish()
    assert b"".join(blobs.parts(DIGEST, offset)) == DATA[offset:]


def test_bytes_of_another_digest_are_discarded(blobs: BlobStore) -> None:
    upload = blobs.upload(DIGEST, 5, 10)
    upload.write(b"wrong")
    with pytest.raises(Malformed, match="are those of"):
        upload.finish()
    assert blobs.received(DIGEST) == 0


def test_limits_are_kept(blobs: BlobStore) -> None:
    with pytest.raises(TooLarge, match="allows 4"):
        blobs.upload(DIGEST, 5, 4)
    upload = blobs.upload(DIGEST, 5, 10)
    with pytest.raises(TooLarge, match="announced"):
        upload.write(b"longer than five")


@pytest.mark.parametrize("name", ["", "../../etc/passwd", DIGEST.upper(), DIGEST + "0", "a" * 63])
def test_a_name_can_not_leave_the_folder(blobs: BlobStore, name: str) -> None:
    with pytest.raises(Malformed):
        blobs.path(name)


def test_what_is_not_there_is_refused(blobs: BlobStore) -> None:
    with pytest.raises(Refused):
        blobs.get(DIGEST)
    with pytest.raises(Refused):
        list(blobs.parts(DIGEST, 0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_sentence_and_nothing_counts(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    (tmp_path / "blobs" / "uploads" / f"{DIGEST}.part").symlink_to("/dev/full")
    upload = blobs.upload(DIGEST, len(DATA), len(DATA))
    with pytest.raises(WorldError, match="make room on the disk"):
        upload.write(DATA[:100])
    upload.pause()  # as the server does whatever happened
    assert not blobs.has(DIGEST)
