"""Every message survives the wire, and nothing out of bounds gets through."""

from __future__ import annotations

import contextlib
import math
import string

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.seats import SHARES
from smalltalk_fed.core.units import HELDOUT, BlobRef, Result, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import Malformed, PeerError, TooLarge
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert, convert_admin, convert_transfer, values
from smalltalk_fed.wire.certificates import make_key, make_request, public_key_sha256
from smalltalk_fed.wire.token import secret_sha256

# One line that can be shown: anything else is refused, and our own reasons are made such.
printable = st.characters(categories=("L", "N", "P", "S")) | st.just(" ")
texts = st.text(printable, max_size=500).map(lambda text: " ".join(text.split()))
names = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=64)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
numbers = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(0, 2**63 - 1)
keys = st.one_of(
    st.builds(UnitKey, st.just(UnitKind.ROUTER_ROUND), st.integers(0, 999), st.integers(1, 999)),
    st.builds(UnitKey, st.just(UnitKind.SHARD), index=st.integers(0, 9999) | st.just(HELDOUT)),
    st.just(UnitKey(UnitKind.TRAIN_SEED)),
    st.builds(
        UnitKey,
        st.just(UnitKind.COUNT),
        index=st.integers(0, 99),
        seat=st.integers(0, 99),
        turn=st.integers(0, 9),
    ),
    st.builds(
        UnitKey,
        st.just(UnitKind.SILO_BLOCK),
        index=st.integers(0, 99),
        seat=st.integers(0, 99),
    ),
    st.builds(UnitKey, st.just(UnitKind.EVALUATE_SILO), seat=st.integers(0, 99)),
    st.builds(
        UnitKey, st.sampled_from([UnitKind.TRAIN_EXPERT, UnitKind.EVALUATE]), st.integers(0, 999)
    ),
)
unit_ids = keys.map(lambda key: key.unit_id)
blobs = st.builds(BlobRef, names, digests, integers)
figures = st.dictionaries(names, numbers, max_size=8)


def blob_lists(most: int) -> st.SearchStrategy[tuple[BlobRef, ...]]:
    return st.lists(blobs, max_size=most, unique_by=lambda ref: ref.name).map(tuple)


units = st.builds(
    Unit,
    keys,
    blob_lists(5),
    weights=st.lists(st.floats(0, 1e9), max_size=4).map(tuple),
    sample=integers,
    prices=st.lists(numbers, max_size=4).map(tuple),
    redo=st.booleans(),
    withdrawn=st.lists(st.integers(0, 1023), max_size=4, unique=True).map(tuple),
)
results = st.builds(Result, unit_ids, blob_lists(4), figures, st.sampled_from([b"", b"s" * 64]))
capabilities = st.builds(
    msg.Capabilities,
    device=st.text(printable, max_size=200),
    threads=st.integers(0, 2**32 - 1),
    memory_bytes=integers,
    tokens_per_s=st.floats(0, 1e12),
    corpus_digest=digests,
    corpus_bytes=integers,
    software=st.text(printable, max_size=200),
    train_sequences=st.integers(0, 2**48),
    heldout_sequences=st.integers(0, 2**48),
)
exchanges = st.builds(
    msg.Exchange,
    node_id=st.just("n-1"),
    incarnation=integers,
    working=st.none() | st.builds(msg.Working, unit_ids, st.floats(0, 1), figures),
    finished=st.none() | results,
    failed=st.none() | st.builds(msg.Failure, unit_ids, texts),
    wants_work=st.booleans(),
)
orders = st.builds(
    msg.Order,
    reason=texts,
    accepted=st.just("") | unit_ids,
    cancel=st.just("") | unit_ids,
    unit=st.none() | units,
    stop=st.booleans(),
    failed=st.booleans(),
    heartbeat_s=st.floats(0.01, 86400),
    wait_s=st.floats(0, 86400),
)


def over_the_wire(message: object) -> object:
    return type(message).FromString(message.SerializeToString())  # type: ignore[attr-defined]


@settings(max_examples=60)
@given(exchanges)
def test_exchange_survives(exchange: msg.Exchange) -> None:
    sent = over_the_wire(convert.exchange_to_proto(exchange))
    assert convert.exchange_from_proto("n-1", sent) == exchange


@settings(max_examples=60)
@given(orders)
def test_order_survives(order: msg.Order) -> None:
    assert convert.order_from_proto(over_the_wire(convert.order_to_proto(order))) == order


@given(st.builds(msg.Join, st.just("n-1"), integers, st.integers(0, 9), st.just(b"k" * 32),
                 capabilities, st.integers(-1, 2**31), st.sampled_from(SHARES)))  # fmt: skip
def test_join_survives(join: msg.Join) -> None:
    assert convert.join_from_proto("n-1", over_the_wire(convert.join_to_proto(join))) == join


@given(st.builds(convert.Welcome, st.builds(msg.Joined, names, texts), st.binary(max_size=99),
                 st.just(b"s" * 64), st.just(b"k" * 32)))  # fmt: skip
def test_welcome_survives(welcome: convert.Welcome) -> None:
    sent = over_the_wire(convert.welcome_to_proto(welcome))
    assert convert.welcome_from_proto(sent) == welcome


@given(st.builds(msg.Leave, st.just("n-1"), integers, texts))
def test_leave_survives(leave: msg.Leave) -> None:
    assert convert.leave_from_proto("n-1", over_the_wire(convert.leave_to_proto(leave))) == leave


@given(st.lists(unit_ids, max_size=16).map(lambda ids: msg.Left(tuple(ids))))
def test_left_survives(left: msg.Left) -> None:
    assert convert.left_from_proto(over_the_wire(convert.left_to_proto(left))) == left


@given(blobs, unit_ids, st.binary(max_size=64), st.data())
def test_upload_survives(ref: BlobRef, unit_id: str, part: bytes, data: st.DataObject) -> None:
    upload = convert_transfer.Upload(ref, unit_id, data.draw(st.integers(0, ref.size)))
    sent = over_the_wire(convert_transfer.upload_to_proto(upload, part))
    assert convert_transfer.upload_from_proto(sent) == upload
    assert sent.data == part  # type: ignore[attr-defined]


@given(st.builds(msg.MakeInvite, digests, st.floats(0, 1e12), st.integers(0, 2**32 - 1), names))
def test_invite_survives(invite: msg.MakeInvite) -> None:
    sent = over_the_wire(convert_admin.invite_to_proto(invite))
    assert convert_admin.invite_from_proto(sent) == invite


def test_other_requests_of_the_operator_survive() -> None:
    revoke, pause = msg.Revoke("n-1", "lost"), msg.Pause("holiday")
    cancel, done = msg.CancelInvite("0a1b"), msg.Done("so it is")
    admin = convert_admin
    assert admin.revoke_from_proto(over_the_wire(admin.revoke_to_proto(revoke))) == revoke
    assert admin.pause_from_proto(over_the_wire(admin.pause_to_proto(pause))) == pause
    readmit = msg.Readmit("n-1")
    assert admin.readmit_from_proto(over_the_wire(admin.readmit_to_proto(readmit))) == readmit
    sent = over_the_wire(admin.cancel_invite_to_proto(cancel))
    assert admin.cancel_invite_from_proto(sent) == cancel
    assert admin.done_from_proto(over_the_wire(admin.done_to_proto(done))) == done


def test_operator_who_gives_no_reason_gets_the_usual_one() -> None:
    assert convert_admin.pause_from_proto(pb.PauseRequest()) == msg.Pause()
    assert convert_admin.revoke_from_proto(pb.RevokeRequest(node_id="n")) == msg.Revoke("n")


def test_enrolment_is_known_by_digests_alone() -> None:
    key = make_key()
    request = pb.EnrolRequest(
        secret=b"0123456789abcdef", certificate_request=make_request(key, "box"), name="box"
    )
    enrol = convert.enrol_from_proto(request)
    assert enrol.secret_sha256 == secret_sha256(b"0123456789abcdef")
    assert enrol.key_sha256 == public_key_sha256(make_request(key, "another name"))
    with pytest.raises(Malformed, match="secret"):
        convert.enrol_from_proto(pb.EnrolRequest(secret=b"short"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    working = pb.Working(unit_id="shard/1", fraction=value)
    with pytest.raises(Malformed, match="fraction"):
        convert.exchange_from_proto("n", pb.ExchangeRequest(working=working))
    result = pb.Result(unit_id="shard/1", figures=[pb.Figure(name="loss", value=value)])
    with pytest.raises(Malformed, match="loss"):
        values.result_from_proto(result)
    with pytest.raises(Malformed, match="tokens a second"):
        convert.capabilities_from_proto(pb.Capabilities(tokens_per_s=value))
    with pytest.raises(Malformed, match="heartbeat"):
        convert.order_from_proto(pb.ExchangeReply(heartbeat_s=value))
    with pytest.raises(Malformed, match="end"):
        convert_admin.invite_from_proto(pb.InviteRequest(secret_sha256=b"d" * 32, expires_at=value))


def test_fraction_beyond_one_is_refused() -> None:
    working = pb.Working(unit_id="shard/1", fraction=1.5)
    with pytest.raises(Malformed, match="within 0 and 1"):
        convert.exchange_from_proto("n", pb.ExchangeRequest(working=working))


@pytest.mark.parametrize("reason", ["\x1b]0;owned\x07", "two\nlines", "\u202egnirts", "\x00"])
def test_texts_that_could_play_with_a_terminal_are_refused_and_never_sent(reason: str) -> None:
    with pytest.raises(Malformed, match="can't be shown"):
        convert.leave_from_proto("n-1", pb.LeaveRequest(reason=reason))
    ours = convert.leave_to_proto(msg.Leave("n-1", 1, reason))
    assert convert.leave_from_proto("n-1", ours).reason.isprintable()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_digest_has_32_bytes(length: int) -> None:
    with pytest.raises(Malformed, match="digest"):
        values.blob_from_proto(pb.BlobRef(name="scores", digest=b"d" * length))


@pytest.mark.parametrize("unit_id", ["", "shard/01", "../../etc", "nothing/1"])
def test_unit_id_must_parse(unit_id: str) -> None:
    with pytest.raises(Malformed):
        values.unit_from_proto(pb.Unit(unit_id=unit_id))


@pytest.mark.parametrize("withdrawn", [[1024], [3, 3]])
def test_experts_that_have_left_are_some_that_can_be_each_once(withdrawn: list[int]) -> None:
    with pytest.raises(Malformed, match="experts that have left"):
        values.unit_from_proto(pb.Unit(unit_id="shard/1", withdrawn=withdrawn))


def test_counts_and_lengths_are_bounded() -> None:
    blob = pb.BlobRef(name="a", digest=b"d" * 32)
    too_large = [
        lambda: values.result_from_proto(pb.Result(unit_id="shard/1", outputs=[blob] * 73)),
        lambda: values.unit_from_proto(pb.Unit(unit_id="shard/1", inputs=[blob] * 2057)),
        lambda: values.figures_from_proto([pb.Figure(name=str(i)) for i in range(65)]),
        lambda: values.unit_from_proto(pb.Unit(unit_id="shard/" + "1" * 999)),
        lambda: values.blob_from_proto(pb.BlobRef(name="n" * 65, digest=b"d" * 32)),
        lambda: values.blob_from_proto(pb.BlobRef(name="n", digest=b"d" * 32, size=2**63)),
        lambda: values.unit_from_proto(pb.Unit(unit_id="shard/1", prices=[0.0] * 1025)),
        lambda: convert.leave_from_proto("n", pb.LeaveRequest(reason="r" * 501)),
        lambda: convert.leave_from_proto("n", pb.LeaveRequest(incarnation=2**64 - 1)),
        lambda: convert.left_from_proto(pb.LeaveReply(released=["shard/1"] * 17)),
        lambda: convert.welcome_from_proto(pb.JoinReply(manifest=b"m" * (1 << 20) + b"m")),
        lambda: convert.capabilities_from_proto(pb.Capabilities(device="d" * 201)),
        lambda: convert.capabilities_from_proto(pb.Capabilities(train_sequences=2**48 + 1)),
        lambda: convert.join_from_proto("n", pb.JoinRequest(signing_key=b"k" * 32, share="s" * 65)),
        lambda: convert_admin.cancel_invite_from_proto(pb.CancelInviteRequest(prefix="0" * 65)),
    ]
    for refused in too_large:
        with pytest.raises(TooLarge):
            refused()


def test_twins_and_nameless_parts_are_refused() -> None:
    blob, figure = pb.BlobRef(name="a", digest=b"d" * 32), pb.Figure(name="x", value=1)
    malformed = [
        lambda: values.unit_from_proto(pb.Unit(unit_id="shard/1", inputs=[blob, blob])),
        lambda: values.figures_from_proto([figure, figure]),
        lambda: values.figures_from_proto([pb.Figure(value=1)]),
        lambda: values.blob_from_proto(pb.BlobRef(digest=b"d" * 32)),
        lambda: values.result_from_proto(pb.Result(unit_id="shard/1", signature=b"s" * 63)),
        lambda: convert.join_from_proto("n", pb.JoinRequest(signing_key=b"k" * 31)),
        lambda: convert.welcome_from_proto(pb.JoinReply()),
        lambda: convert_transfer.upload_from_proto(
            pb.BlobPart(name="a", digest=b"d" * 32, size=3, offset=4, unit_id="shard/1")
        ),
    ]
    for refused in malformed:
        with pytest.raises(Malformed):
            refused()


def test_our_own_reasons_are_cut_to_what_the_other_end_takes() -> None:
    failure = msg.Failure("shard/1", "long " * 1000)
    sent = convert.exchange_to_proto(msg.Exchange("n", 1, failed=failure))
    received = convert.exchange_from_proto("n", sent).failed
    assert received is not None
    assert received.reason == failure.reason[:500]
    order = msg.Order("long " * 1000)
    assert len(convert.order_from_proto(convert.order_to_proto(order)).reason) == 500


@settings(max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([pb.ExchangeRequest, pb.ExchangeReply, pb.BlobPart,
                                                 pb.JoinRequest, pb.EnrolRequest]))  # fmt: skip
def test_arbitrary_bytes_never_do_worse_than_a_peer_error(data: bytes, kind: type) -> None:
    readers = {
        pb.ExchangeRequest: lambda m: convert.exchange_from_proto("n", m),
        pb.ExchangeReply: convert.order_from_proto,
        pb.BlobPart: convert_transfer.upload_from_proto,
        pb.JoinRequest: lambda m: convert.join_from_proto("n", m),
        pb.EnrolRequest: convert.enrol_from_proto,
    }
    with contextlib.suppress(DecodeError, PeerError):
        readers[kind](kind.FromString(data))  # type: ignore[attr-defined]
