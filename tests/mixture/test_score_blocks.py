"""Score blocks: precise enough, stable, and strict about what they read."""

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smalltalk_fed.mixture.scores import decode_scores, encode_scores, stack_score_blocks

FINITE = st.floats(-(2.0**24), 2.0**24, width=32)
NEAR = st.floats(-1500, 0, width=32)
LISTS = st.lists(FINITE, max_size=30) | st.lists(NEAR, max_size=30)


def step_of(data: bytes) -> float:
    return struct.unpack_from("<f", data, 16)[0]


@given(LISTS)
def test_what_is_decoded_is_near_what_was_encoded(scores):
    data = encode_scores(np.array(scores, np.float32))
    assert len(data) == 20 + 2 * len(scores)
    decoded = decode_scores(data, len(scores))
    step = step_of(data)
    assert decoded.dtype == np.float32
    error = np.abs(decoded.astype(np.float64) - np.array(scores, np.float64))
    assert (error <= (1 / 64 if step == 1 / 32 else step)).all()


@given(LISTS)
@example([0.0, 65401 / 32 + 0.02])
@example([0.0, 65402 / 32 + 0.02])
@example([-1000.0, 65403 / 32 - 1000.01])
@example([2.0**24 - 1, 2.0**24 - 2])
def test_encoding_a_decoded_block_gives_the_same_bytes(scores):
    data = encode_scores(np.array(scores, np.float32))
    assert encode_scores(decode_scores(data)) == data


@pytest.mark.parametrize("border", [65_402, 65_535])
def test_the_bytes_stay_the_same_where_the_step_doubles(border):
    """Around the range at which int16, or the margin left in it, ends; wherever it begins."""
    for steps in range(border - 8, border + 8):
        for low in range(-2, 3):
            data = encode_scores(np.array([low, low + steps], np.float32) / 32)
            assert encode_scores(decode_scores(data)) == data


@pytest.mark.parametrize(("range_nats", "step"), [(2000, 1 / 32), (2100, 1 / 16), (2**25, 1024)])
def test_the_step_is_the_finest_that_fits(range_nats, step):
    data = encode_scores(np.array([-range_nats / 2, 0, range_nats / 2], np.float32))
    assert step_of(data) == step


def test_prefix_scores_are_off_by_a_64th_of_a_nat_at_most():
    scores = -850 + 60 * np.sin(np.arange(10_000, dtype=np.float32))
    decoded = decode_scores(encode_scores(scores))
    assert np.abs(decoded - scores).max() <= 1 / 64


def test_golden_bytes():
    data = encode_scores(np.array([-850.0, -849.5, -800.25], np.float32))
    assert data.hex() == "53545342010000000300000000484ec40000003d" + "e4fcf4fc1c03"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**25])
def test_what_is_no_score_is_refused(bad):
    with pytest.raises(ValueError, match=r"finite|within"):
        encode_scores(np.array([1.0, bad], np.float32))


def test_a_matrix_is_refused():
    with pytest.raises(ValueError, match="shape"):
        encode_scores(np.zeros((2, 2), np.float32))


GOOD = encode_scores(np.array([-3.0, -2.0, 5.5], np.float32))


def with_header(magic=b"STSB", version=1, zeros=bytes(3), n=3, centre=1.0, step=1 / 32):
    return struct.pack("<4sB3sIff", magic, version, zeros, n, centre, step) + bytes(6)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "header of 20"),
        (GOOD[:19], "header of 20"),
        (GOOD[:-1], "26 bytes, got 25"),
        (GOOD + b"\0", "26 bytes, got 27"),
        (with_header(magic=b"STSC"), "not a score block"),
        (with_header(zeros=b"\0\0\1"), "not a score block"),
        (with_header(version=2), "version 2"),
        (with_header(n=2**32 - 1), "4294967295 scores"),
        (with_header(step=0.75), "power of two"),
        (with_header(step=1 / 64), "power of two"),
        (with_header(step=2048), "power of two"),
        (with_header(step=-0.5), "power of two"),
        (with_header(step=np.nan), "power of two"),
        (with_header(step=np.inf), "power of two"),
        (with_header(centre=np.nan), "centre"),
        (with_header(centre=np.inf), "centre"),
        (with_header(centre=1.01), "centre"),
        (with_header(centre=2.0**30), "centre"),
    ],
)
def test_a_malformed_block_is_refused(data, says):
    with pytest.raises(ValueError, match=says):
        decode_scores(data)


def test_another_count_than_expected_is_refused():
    with pytest.raises(ValueError, match="3 scores where 4 are expected"):
        decode_scores(GOOD, 4)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: GOOD[:12] + tail))
def test_any_bytes_are_decoded_or_refused(data):
    try:
        decoded = decode_scores(data)
    except ValueError:
        return
    assert np.isfinite(decoded).all()


def test_blocks_are_stacked_into_columns():
    columns = [np.array([-1.0, -2.0, -3.0]), np.array([-4.0, -5.0, -6.0])]
    blocks = [encode_scores(column) for column in columns]
    stacked = stack_score_blocks(blocks, 3)
    assert stacked.flags.c_contiguous
    assert stacked.tolist() == np.stack(columns, axis=1).tolist()
    with pytest.raises(ValueError, match=r"expert 1: .*expected"):
        stack_score_blocks([blocks[0], encode_scores(np.zeros(4, np.float32))], 3)
