"""What every blob store does, whatever it is made of: the folder, and its naive twin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.naive_stores import DictBlobs, DictDisk

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, Refused, TooLarge, WorldError
from smalltalk_fed.host.blobs import BlobStore

DATA = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(DATA).hexdigest()
SIZE = len(DATA)
Open = Callable[[], BlobStore | DictBlobs]


@pytest.fixture(params=["folder", "dictionary"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store again and again, as one process after the other would."""
    disk = DictDisk()
    if request.param == "dictionary":
        return lambda: DictBlobs(disk)
    return lambda: BlobStore(tmp_path / "blobs")


def test_what_was_put_can_be_got_also_after_reopening(open_store: Open) -> None:
    blobs = open_store()
    ref = blobs.put("scores", DATA)
    assert (ref.name, ref.digest, ref.size) == ("scores", DIGEST, SIZE)
    assert blobs.put("again", DATA).digest == DIGEST
    for store in (blobs, open_store()):
        assert store.get(DIGEST) == DATA
        assert store.size(DIGEST) == store.received(DIGEST) == SIZE
        assert list(store.digests()) == [DIGEST]
        store.verify(DIGEST)


def test_what_was_dropped_is_gone_and_may_be_dropped_again(open_store: Open) -> None:
    blobs = open_store()
    blobs.put("scores", DATA)
    blobs.drop(DIGEST)
    blobs.drop(DIGEST)
    assert not blobs.has(DIGEST)
    assert not open_store().has(DIGEST)


@pytest.mark.parametrize("cut", [0, 1, 256 * 1024, SIZE - 1, SIZE])
def test_an_upload_goes_on_at_its_offset_also_after_reopening(open_store: Open, cut: int) -> None:
    upload = open_store().upload(DIGEST, SIZE, SIZE)
    upload.write(DATA[:cut])
    upload.pause()
    restarted = open_store()
    restarted.clean()
    assert restarted.received(DIGEST) == cut
    assert not restarted.has(DIGEST)
    again = restarted.upload(DIGEST, SIZE, SIZE)
    assert again.received == cut
    again.go_on_at(cut)
    again.write(DATA[cut:])
    assert again.finish().digest == DIGEST
    assert restarted.get(DIGEST) == DATA


@pytest.mark.parametrize("offset", [0, 1, 256 * 1024, SIZE - 1, SIZE])
def test_a_download_may_begin_anywhere(open_store: Open, offset: int) -> None:
    blobs = open_store()
    blobs.put("scores", DATA)
    assert b"".join(blobs.parts(DIGEST, offset)) == DATA[offset:]


@pytest.mark.parametrize("offset", [-1, SIZE + 1])
def test_a_download_from_outside_the_blob_is_refused(open_store: Open, offset: int) -> None:
    blobs = open_store()
    blobs.put("scores", DATA)
    with pytest.raises(Malformed):
        list(blobs.parts(DIGEST, offset))


def test_a_sender_may_go_back_and_not_leave_out(open_store: Open) -> None:
    blobs = open_store()
    blobs.upload(DIGEST, SIZE, SIZE).write(DATA[:100])
    upload = blobs.upload(DIGEST, SIZE, SIZE)
    with pytest.raises(WorldError, match="ask BlobState"):
        upload.go_on_at(101)
    upload.go_on_at(40)
    assert upload.received == 40
    upload.write(DATA[40:])
    upload.finish()
    assert blobs.get(DIGEST) == DATA


def test_a_newer_upload_of_a_blob_ends_the_one_before(open_store: Open) -> None:
    blobs = open_store()
    stalled = blobs.upload(DIGEST, SIZE, SIZE)
    stalled.write(DATA[:100])
    current = blobs.upload(DIGEST, SIZE, SIZE)
    with pytest.raises(WorldError, match="newer upload"):
        stalled.write(DATA[100:200])
    with pytest.raises(WorldError, match="newer upload"):
        stalled.finish()
    current.go_on_at(100)
    current.write(DATA[100:])
    current.finish()
    assert blobs.get(DIGEST) == DATA


def test_bytes_of_another_digest_are_discarded(open_store: Open) -> None:
    blobs = open_store()
    upload = blobs.upload(DIGEST, 5, 10)
    upload.write(b"wrong")
    with pytest.raises(Malformed, match="are those of"):
        upload.finish()
    assert blobs.received(DIGEST) == 0
    assert not blobs.has(DIGEST)


def test_limits_are_kept(open_store: Open) -> None:
    blobs = open_store()
    with pytest.raises(TooLarge, match="allows 4"):
        blobs.upload(DIGEST, 5, 4)
    upload = blobs.upload(DIGEST, 5, 10)
    with pytest.raises(TooLarge, match="announced"):
        upload.write(b"longer than five")
    assert blobs.received(DIGEST) == 0


@pytest.mark.parametrize("name", ["", "../../etc/passwd", DIGEST.upper(), DIGEST + "0", "a" * 63])
def test_a_name_is_a_digest(open_store: Open, name: str) -> None:
    blobs = open_store()
    for act in (blobs.has, blobs.get, lambda digest: blobs.upload(digest, 1, 1)):
        with pytest.raises(Malformed):
            act(name)


def test_what_is_not_there_is_refused(open_store: Open) -> None:
    blobs = open_store()
    for act in (blobs.get, blobs.size, blobs.verify, lambda digest: list(blobs.parts(digest, 0))):
        with pytest.raises(Refused):
            act(DIGEST)


def test_lost_names_what_is_gone_or_of_another_size(open_store: Open) -> None:
    blobs = open_store()
    good, short = blobs.put("a", b"good"), blobs.put("b", b"short")
    wrong = BlobRef("b", short.digest, short.size + 1)
    assert blobs.lost([good, BlobRef("c", DIGEST, SIZE), wrong]) == [DIGEST, short.digest]
