"""Blobs over real sockets: resumed at the byte where they broke off, checked, counted."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import grpc
import pytest
from smalltalk_node import transfer
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import NoAnswer
from smalltalk_node.transfer import get_blob, put_blob
from support.loopback_coordinator import PART_BYTES, Loopback

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, Refused
from smalltalk_fed.worksite.cache import ref_of

DATA = os.urandom(5 * transfer.PART_BYTES + 17)
LARGE = os.urandom(24 * transfer.PART_BYTES)  # more than sockets and windows take in
UNIT = "router_round/0/1"


def both_ends_agree(connection: Connection, loopback: Loopback) -> None:
    mine = [row for row in connection.ledger.table() if row.kind != "join"]
    assert mine == loopback.ledger.table()


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("data", [DATA, b"", b"x"])
def test_upload_arrives_whole(
    connection: Connection, loopback: Loopback, tmp_path: Path, as_file: bool, data: bytes
) -> None:
    source: bytes | Path = data
    if as_file:
        source = tmp_path / "blob"
        source.write_bytes(data)
    ref = ref_of("parameters", source)
    assert ref == BlobRef("parameters", hashlib.sha256(data).hexdigest(), len(data))
    put_blob(connection, ref, UNIT, source)
    assert loopback.blobs[ref.digest] == data
    assert connection.ledger.by_kind()["parameters"]["up"] > len(data)
    both_ends_agree(connection, loopback)


def test_what_is_there_does_not_travel_again(connection: Connection, loopback: Loopback) -> None:
    ref = loopback.put("parameters", DATA)
    put_blob(connection, ref, UNIT, DATA)
    assert loopback.uploads == []
    assert "parameters" not in connection.ledger.by_kind()


def test_upload_goes_on_where_it_broke_off(connection: Connection, loopback: Loopback) -> None:
    ref = ref_of("scores", DATA)
    loopback.behaviour.put_breaks_after = 2
    with pytest.raises(NoAnswer):
        put_blob(connection, ref, UNIT, DATA)
    loopback.behaviour.put_breaks_after = None
    put_blob(connection, ref, UNIT, DATA)
    assert loopback.uploads == [(UNIT, "scores", 0), (UNIT, "scores", 2 * transfer.PART_BYTES)]
    assert loopback.blobs[ref.digest] == DATA


def test_upload_that_is_stopped_can_be_continued(
    connection: Connection, loopback: Loopback
) -> None:
    ref, answers = ref_of("scores", DATA), iter([False, False, True])
    with pytest.raises(NoAnswer, match="broke off"):
        put_blob(connection, ref, UNIT, DATA, lambda: next(answers))
    assert len(loopback.partial[ref.digest]) == 2 * transfer.PART_BYTES
    put_blob(connection, ref, UNIT, DATA)
    assert loopback.blobs[ref.digest] == DATA


def test_upload_that_stalls_ends_and_goes_on_where_it_was(
    connection: Connection, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_S", 0.3)
    ref = ref_of("scores", LARGE)
    loopback.behaviour.put_stalls_after = 2
    with pytest.raises(NoAnswer):
        put_blob(connection, ref, UNIT, LARGE)
    loopback.behaviour.put_stalls_after = None
    put_blob(connection, ref, UNIT, LARGE)
    assert loopback.uploads == [(UNIT, "scores", 0), (UNIT, "scores", 2 * transfer.PART_BYTES)]
    assert loopback.blobs[ref.digest] == LARGE


def test_transfer_that_stands_still_is_stopped_when_nobody_wants_it(
    connection: Connection, loopback: Loopback, tmp_path: Path
) -> None:
    ref, unwanted = loopback.put("share", LARGE), threading.Event()
    loopback.behaviour.get_stalls_after = 1
    threading.Timer(0.2, unwanted.set).start()
    with pytest.raises(NoAnswer):
        get_blob(connection, ref, tmp_path / "share", unwanted.is_set)


def test_download_that_stalls_ends_and_goes_on_where_it_was(
    connection: Connection, loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_S", 0.3)
    ref = loopback.put("share", DATA)
    loopback.behaviour.get_stalls_after = 3
    with pytest.raises(NoAnswer):
        get_blob(connection, ref, tmp_path / "share")
    loopback.behaviour.get_stalls_after = None
    before = connection.ledger.by_kind()["ids"]["down"]
    assert get_blob(connection, ref, tmp_path / "share").read_bytes() == DATA
    rest = connection.ledger.by_kind()["ids"]["down"] - before
    assert rest < len(DATA) - 2 * PART_BYTES


def test_download_arrives_whole(connection: Connection, loopback: Loopback, tmp_path: Path) -> None:
    for number, data in enumerate((DATA, b"", b"x")):
        ref = loopback.put("share", data)
        assert get_blob(connection, ref, tmp_path / str(number)).read_bytes() == data
    assert connection.ledger.by_kind()["ids"]["down"] > len(DATA)
    both_ends_agree(connection, loopback)


def test_download_goes_on_where_it_broke_off(
    connection: Connection, loopback: Loopback, tmp_path: Path
) -> None:
    ref, to = loopback.put("share", DATA), tmp_path / "share"
    loopback.behaviour.get_breaks_after = 3
    with pytest.raises(NoAnswer):
        get_blob(connection, ref, to)
    assert not to.exists()
    before = connection.ledger.by_kind()["ids"]["down"]
    assert before < 4 * PART_BYTES
    loopback.behaviour.get_breaks_after = None
    assert get_blob(connection, ref, to).read_bytes() == DATA
    rest = connection.ledger.by_kind()["ids"]["down"] - before
    assert rest < len(DATA) - 2 * PART_BYTES  # the first parts did not travel twice


def test_download_that_is_stopped_can_be_continued(
    connection: Connection, loopback: Loopback, tmp_path: Path
) -> None:
    ref, answers = loopback.put("share", DATA), iter([False, True])
    with pytest.raises(NoAnswer, match="broke off"):
        get_blob(connection, ref, tmp_path / "share", lambda: next(answers))
    assert get_blob(connection, ref, tmp_path / "share").read_bytes() == DATA


@pytest.mark.parametrize(
    ("other", "word"), [(DATA[:-1] + b"!", "digest"), (DATA + bytes(10**6), "more than")]
)
def test_other_bytes_than_asked_for_are_refused(
    connection: Connection, loopback: Loopback, tmp_path: Path, other: bytes, word: str
) -> None:
    ref, to = loopback.put("share", DATA), tmp_path / "share"
    loopback.behaviour.get_sends = other
    with pytest.raises(Malformed, match=f"wrong blob.*{word}"):
        get_blob(connection, ref, to)
    assert list(tmp_path.glob("share*")) == []
    loopback.behaviour.get_sends = None
    assert get_blob(connection, ref, to).read_bytes() == DATA


def test_refusals_of_either_way_say_why(
    connection: Connection, loopback: Loopback, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="no such blob"):
        get_blob(connection, ref_of("share", DATA), tmp_path / "share")
    loopback.behaviour.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "not in this phase")
    with pytest.raises(Refused, match="not in this phase"):
        put_blob(connection, ref_of("scores", DATA), UNIT, DATA)
