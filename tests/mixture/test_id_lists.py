"""Id and expert lists: what goes in comes out in order, what is malformed is refused."""

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smalltalk_fed.mixture.idlists import decode_experts, decode_ids, encode_experts, encode_ids


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 70_000), max_size=30))
@example([2**16 - 1])
@example([2**16])
@example([2**32 - 1])
@example([2**32])
def test_ids_come_back_in_their_order(ids):
    data = encode_ids(np.array(ids, np.int64))
    largest = max(ids, default=0)
    width = 2 if largest < 2**16 else 4 if largest < 2**32 else 8
    assert len(data) == 16 + width * len(ids)
    decoded = decode_ids(data, largest + 1)
    assert decoded.dtype == np.int64
    assert decoded.tolist() == ids


@given(st.integers(1, 65_536), st.data())
def test_experts_come_back_in_their_order(experts, data):
    numbers = data.draw(st.lists(st.integers(0, experts - 1), max_size=30))
    encoded = encode_experts(np.array(numbers, np.int32), experts)
    assert len(encoded) == 16 + len(numbers) * (1 if experts <= 256 else 2)
    decoded = decode_experts(encoded, len(numbers), experts)
    assert decoded.dtype == np.int32
    assert decoded.tolist() == numbers


def test_golden_bytes():
    assert encode_ids([3, 1, 3]).hex() == "5354494401020000" + "0300000000000000" + "030001000300"
    assert encode_experts([3, 1], 4).hex() == "5354455801010000" + "0200000000000000" + "0301"


def ids_with_header(magic=b"STID", version=1, width=2, zeros=bytes(2), n=2):
    return struct.pack("<4sBB2sQ", magic, version, width, zeros, n) + b"\1\0\2\0"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "header of 16"),
        (ids_with_header()[:-1], "20 bytes, got 19"),
        (ids_with_header() + b"\0", "20 bytes, got 21"),
        (ids_with_header(n=2**64 - 1), "18446744073709551615 sequences"),
        (ids_with_header(magic=b"STEX"), "not an id list"),
        (ids_with_header(zeros=b"\1\0"), "not an id list"),
        (ids_with_header(version=0), "version 0"),
        (ids_with_header(width=1), "2 or 4 or 8 bytes"),
        (ids_with_header(width=0, n=0), "2 or 4 or 8 bytes"),
    ],
)
def test_a_malformed_id_list_is_refused(data, says):
    with pytest.raises(ValueError, match=says):
        decode_ids(data)


def test_ids_beyond_the_limit_are_refused():
    assert decode_ids(encode_ids([4, 2]), 5).tolist() == [4, 2]
    with pytest.raises(ValueError, match="sequence 4, but ids end at 3"):
        decode_ids(encode_ids([4, 2]), 4)
    beyond_int64 = struct.pack("<4sBB2sQQ", b"STID", 1, 8, bytes(2), 1, 2**63)
    with pytest.raises(ValueError, match="ids end at 9223372036854775807"):
        decode_ids(beyond_int64)


@pytest.mark.parametrize("bad", [[-1], [[1]], [1.5], np.array([2**63], np.uint64)])
def test_what_is_no_id_list_is_not_encoded(bad):
    with pytest.raises(ValueError, match=r"ids"):
        encode_ids(bad)


def test_experts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="from 0 to 4"):
        encode_experts([0, 4], 4)
    with pytest.raises(ValueError, match="from -1 to 0"):
        encode_experts([0, -1], 4)
    with pytest.raises(ValueError, match="names expert 3, but there are 3"):
        decode_experts(encode_experts([0, 3], 4), 2, 3)
    with pytest.raises(ValueError, match="2 sequences where 3 are expected"):
        decode_experts(encode_experts([0, 3], 4), 3, 4)
    with pytest.raises(ValueError, match="1 bytes a sequence here, not 2"):
        decode_experts(encode_experts([0, 3], 400), 2, 4)
    with pytest.raises(ValueError, match="within 1 and 65536"):
        encode_experts([], 0)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"STID\1\2\0\0" + tail))
def test_any_bytes_are_decoded_or_refused(data):
    try:
        decoded = decode_ids(data, 1000)
    except ValueError:
        return
    assert ((decoded >= 0) & (decoded < 1000)).all()
