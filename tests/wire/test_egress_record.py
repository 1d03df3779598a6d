"""A record of what left is held against what is declared; whatever else is in it is found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from support.leaks import Haystack, score_pieces, text_pieces, token_pieces, varint
from support.silos import private_run
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.errors import DataError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.egress_record import (
    Sent,
    Upload,
    entry,
    read_record,
    undeclared,
    undeclared_upload,
    uploads,
)

UNIT = "router_round/0/1"


def sent(call: str, message: object, more: bytes = b"") -> Sent:
    return Sent(1.0, call, message.SerializeToString() + more)  # type: ignore[attr-defined]


def part(whole: bytes, name: str = "scores", **changes: object) -> pb.BlobPart:
    fields = {"digest": hashlib.sha256(whole).digest(), "size": len(whole), "unit_id": UNIT}
    return pb.BlobPart(**{**fields, "name": name, "data": whole, **changes})


# --------------------------------------------------------------------------------- the file


def test_a_record_is_read_back(tmp_path: Path) -> None:
    messages = [
        Sent(12.5, "Exchange", b"one\nline", 0),
        Sent(13.0, "PutBlob", bytes(range(256)), 3),
        Sent(14.0, "Leave", b"", 0),
    ]
    path = tmp_path / "record"
    path.write_bytes(b"".join(entry(s.at, f"/x.Run/{s.call}", s.data, s.stream) for s in messages))
    assert list(read_record(path)) == messages


@pytest.mark.parametrize(
    "data",
    [b"no record", b"{}\n", b"[]\n", b'{"at": 1, "call": "Join", "bytes": 9}\nshort\n',
     b'{"at": 1, "call": "Join", "bytes": 1}\nab\n', b'{"at": 1, "call": "Join", "bytes": -3}\n\n'],
)  # fmt: skip
def test_what_is_no_record_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "record").write_bytes(data)
    with pytest.raises(DataError, match="is no record of what left a node"):
        list(read_record(tmp_path / "record"))


# --------------------------------------------------------------------------------- messages


def test_the_messages_of_a_node_are_as_declared() -> None:
    working = pb.Working(unit_id=UNIT, fraction=0.5, figures=[pb.Figure(name="loss", value=3.0)])
    for call, message in (
        ("Join", pb.JoinRequest(incarnation=7, signing_key=bytes(32))),
        ("Exchange", pb.ExchangeRequest(incarnation=7, working=working)),
        ("Leave", pb.LeaveRequest(incarnation=7, reason="stopped")),
        ("PutBlob", part(b"abc")),
        ("GetBlob", pb.GetBlobRequest(digest=bytes(32), name="share")),
    ):
        assert undeclared(sent(call, message)) == "", call


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (sent("Telemetry", pb.LeaveRequest()), "not one that a node makes"),
        (Sent(1.0, "Exchange", b"\xff\xff\xff"), "is no ExchangeRequest"),
        # Field 50, which the message does not have, holds text.
        (sent("Leave", pb.LeaveRequest(), varint(50 << 3 | 2) + b"\x05hello"), "no declared field"),
        # A number written longer than it need be could hide bits.
        (Sent(1.0, "Leave", b"\x08\x81\x00"), "no declared field"),
        (sent("Leave", pb.LeaveRequest(reason="x" * 501)), "out of bounds"),
        (sent("Exchange", pb.ExchangeRequest(
            working=pb.Working(unit_id=UNIT, figures=[pb.Figure(name="token_17", value=4.0)]))),
         "'token_17' is not declared"),
        (sent("Exchange", pb.ExchangeRequest(
            finished=pb.Result(unit_id=UNIT, figures=[pb.Figure(name="loss_at_x", value=4.0)]))),
         "'loss_at_x' is not declared"),
    ],
)  # fmt: skip
def test_what_is_not_declared_is_said(message: Sent, says: str) -> None:
    assert says in undeclared(message)


# ---------------------------------------------------------------------------------- uploads


def test_uploads_are_put_together_whatever_their_parts_came_between() -> None:
    first, second = bytes(range(100)), b"second upload"
    messages = [
        Sent(1.0, "PutBlob", part(first, data=first[:60]).SerializeToString(), 1),
        sent("Exchange", pb.ExchangeRequest()),
        Sent(1.0, "PutBlob", part(second, "parameters").SerializeToString(), 2),
        Sent(1.0, "PutBlob", pb.BlobPart(data=first[60:]).SerializeToString(), 1),
        Sent(2.0, "PutBlob", part(second, "parameters").SerializeToString(), 1),  # a new process
    ]
    found = uploads(messages)
    assert [(u.name, bytes(u.data)) for u in found] == [
        ("scores", first), ("parameters", second), ("parameters", second),
    ]  # fmt: skip
    assert [undeclared_upload(upload) for upload in found] == ["", "", ""]


def test_an_upload_that_is_not_declared_is_said(tmp_path: Path) -> None:
    manifest = tiny_manifest(write_tiny_corpus(tmp_path / "corpus"))
    data = b"sixteen bytes of"
    digest = hashlib.sha256(data).hexdigest()

    def said(name: str, size: int, *, offset: int = 0, digest: str = digest) -> str:
        upload = Upload(name, UNIT, offset, size, digest, bytearray(data))
        return undeclared_upload(upload, manifest)

    assert said("scores", 16) == ""
    assert "not declared" in said("diary", 16)
    assert "more than its 15 bytes" in said("scores", 15)
    assert "more than its 20 bytes" in said("scores", 20, offset=5)
    assert "over 144" in said("scores", 145)
    assert "digest" in said("scores", 16, digest="0" * 64)


def test_an_upload_of_the_other_regime_is_said() -> None:
    """Scores of a silo's sequences, in a run in which each silo has its own."""
    data = b"sixteen bytes of"
    digest = hashlib.sha256(data).hexdigest()
    for name, leaves in (("scores", False), ("parameters", False), ("router-0", True)):
        upload = Upload(name, "silo_block/0/1", 0, 16, digest, bytearray(data))
        assert ("never leaves in it" in undeclared_upload(upload, private_run(2))) != leaves


# ------------------------------------------------------------------- the search finds what it must

TEXT = "the quick brown fox jumps over lazy dogs"
TOKENS = [3, 299, 17, 255, 256, 8, 120, 64, 31, 2]
SCORES = [-41.25, -38.7, -55.03, -47.1, -39.9]


@pytest.mark.parametrize(
    "planted",
    [
        TEXT.encode(), TEXT[7:30].encode(), TEXT.encode("utf-16-le"), TEXT.encode().hex().encode(),
        *(__import__("base64").b64encode(b"x" * n + TEXT.encode()) for n in range(3)),
        __import__("zlib").compress(TEXT.encode()),
    ],
)  # fmt: skip
def test_planted_text_is_found(planted: bytes) -> None:
    assert Haystack({"here": b"\x01\x02" + planted + b"\x03"}).find(text_pieces(TEXT))
    assert not Haystack({"here": b"something else entirely, of no interest"}).find(
        text_pieces(TEXT)
    )


@pytest.mark.parametrize(
    "planted",
    [
        *(np.array(TOKENS, dtype=kind).tobytes() for kind in ("<u2", ">u2", "<u4", "<i8", "<f4")),
        b"".join(varint(token) for token in TOKENS),
        ",".join(map(str, TOKENS)).encode(),
        str(TOKENS[1:9]).encode(),
        np.array(TOKENS[2:9], dtype="<u2").tobytes(),
    ],
)
def test_a_planted_run_of_tokens_is_found(planted: bytes) -> None:
    assert Haystack({"here": b"\x01" + planted}).find(token_pieces(TOKENS))
    other = np.array(TOKENS[::-1], dtype="<u2").tobytes()
    assert not Haystack({"here": other}).find(token_pieces(TOKENS))


@pytest.mark.parametrize("kind", ["<f4", "<f8", ">f4", "<f2"])
def test_planted_scores_are_found_known_or_not(kind: str) -> None:
    planted = np.array(SCORES * 4, dtype=np.float32).astype(kind).tobytes()
    hay = Haystack({"here": b"\x01\x02\x03" + planted})
    assert hay.find(score_pieces(SCORES))
    assert hay.score_like(-100.0, -10.0)
    weights = np.random.default_rng(1).normal(0, 0.1, 10_000).astype("<f4").tobytes()
    assert not Haystack({"here": weights}).score_like(-100.0, -10.0)


def test_scores_that_leave_one_by_one_as_figures_are_found() -> None:
    """Their names may be declared, as those of a loss curve: then the values give them away."""
    figures = [
        pb.Figure(name=f"loss_at_{n}", value=float(np.float32(score)))
        for n, score in enumerate(SCORES)
    ]
    working = pb.Working(unit_id=UNIT, figures=figures)
    message = sent("Exchange", pb.ExchangeRequest(working=working))
    assert undeclared(message) == ""
    assert len(Haystack.of([message]).find(score_pieces(SCORES))) == len(SCORES)
