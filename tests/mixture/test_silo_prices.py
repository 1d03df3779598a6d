"""What leaves of a silo's counts, and how prices follow them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.errors import BadBlob
from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.mixture.silo_prices import (
    WITHHELD,
    decode_counts,
    encode_counts,
    expert_shares,
    move_prices,
    withhold,
)

counts = st.lists(st.integers(0, 500), min_size=1, max_size=9)
floors = st.integers(1, 60)


def naive_move(prices, rows, seats, sequences, step):
    """Dual ascent, entry by entry."""
    speaking = [k for k, row in enumerate(rows) if any(c != WITHHELD for c in row)]
    heard = sum(sequences[k] for k in speaking)
    moved = list(prices)
    for k in speaking:
        whole = sum(c for c in rows[k] if c != WITHHELD)
        for e, c in enumerate(rows[k]):
            won = 0 if c == WITHHELD else c / whole
            target = 1 / len(seats[k]) if e in seats[k] else 0
            moved[e] += step * sequences[k] / heard * (won - target)
    return moved


@given(counts, floors)
def test_what_leaves_is_a_multiple_of_the_floor_or_withheld(row, floor):
    left = withhold(row, floor)
    for exact, shown in zip(row, left.tolist(), strict=True):
        if exact < floor:
            assert shown == WITHHELD
        else:
            assert shown <= exact < shown + floor
            assert shown % floor == 0
    assert (decode_counts(encode_counts(left), len(row), floor) == left).all()


def test_a_withheld_count_is_not_what_is_missing_of_the_rows_sum():
    """Who knows that 110 prefixes are held out still can't tell how many went elsewhere."""
    rows = {tuple(withhold([110 - elsewhere, elsewhere], 10)) for elsewhere in range(1, 10)}
    assert rows == {(100, WITHHELD)}


@pytest.mark.parametrize(
    ("row", "floor", "words"),
    [([-1, 4], 10, "within 0"), ([1.5], 10, "whole number"), ([[1]], 10, "whole"), ([1], 0, "1")],
)
def test_counts_that_are_none_are_refused(row, floor, words):
    with pytest.raises(ValueError, match=words):
        withhold(row, floor)


GOOD = encode_counts(withhold([25, 3, 100], 10))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has 24 bytes, got 0"),
        (GOOD + b"x", "has 24 bytes, got 25"),
        (b"STSB" + GOOD[4:], "header"),
        (GOOD[:5] + b"\0x\0" + GOOD[8:], "header"),  # no room for anything else
        (GOOD[:4] + b"\x02" + GOOD[5:], "version 2"),
        (GOOD[:8] + b"\x04\0\0\0" + GOOD[12:], "4 counts where 3"),
        (GOOD[:12] + b"\x19\0\0\0" + GOOD[16:], "holds 25, but"),
        (GOOD[:12] + b"\0\0\0\0" + GOOD[16:], "holds 0, but"),
        (GOOD[:12] + b"\xfa\xff\xff\xff" + GOOD[16:], "holds 4294967290"),
    ],
)
def test_bytes_that_are_no_row_are_refused_with_the_reason(data, words):
    with pytest.raises(BadBlob, match=words):
        decode_counts(data, 3, 10)


@given(st.binary(max_size=80), st.integers(1, 6), floors)
def test_any_bytes_are_a_row_or_a_bad_blob(data, experts, floor):
    try:
        row = decode_counts(data, experts, floor)
    except BadBlob:
        return
    assert encode_counts(row) == data


def test_shares_follow_the_silos_text_and_are_even_within_one():
    shares = expert_shares([range(2), range(2, 3)], [300, 100])
    assert shares.tolist() == [0.375, 0.375, 0.25]
    with pytest.raises(ValueError, match="must be text"):
        expert_shares([range(1)], [0])


@st.composite
def exchanges(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    ends = np.cumsum([0, *sizes]).tolist()
    seats = [range(*pair) for pair in pairwise(ends)]
    experts = ends[-1]
    row = st.lists(st.integers(0, 60), min_size=experts, max_size=experts)
    rows = [withhold(draw(row), 10) for _ in seats]
    sequences = draw(st.lists(st.integers(1, 900), min_size=len(seats), max_size=len(seats)))
    prices = draw(st.lists(st.floats(-50, 50), min_size=experts, max_size=experts))
    return prices, np.stack(rows), seats, sequences, draw(st.floats(0, 100))


@given(exchanges())
def test_prices_move_as_the_naive_twins_do(exchange):
    prices, rows, seats, sequences, step = exchange
    moved, figures = move_prices(prices, rows, seats, sequences, step)
    assert np.allclose(moved, naive_move(prices, rows.tolist(), seats, sequences, step))
    assert np.isclose(moved.sum(), np.sum(prices), atol=1e-6)
    assert 0 <= figures["off_diagonal"] <= 1 + 1e-9
    assert figures["silent_seats"] == sum((row == WITHHELD).all() for row in rows)


@given(exchanges(), st.data())
def test_those_who_have_left_are_as_if_they_had_never_been(exchange, data):
    prices, rows, seats, sequences, step = exchange
    every = range(len(prices))
    gone = data.draw(st.sets(st.sampled_from(every), max_size=len(prices) - 1))
    left = [(k, [e for e in seats[k] if e not in gone]) for k in range(len(seats))]
    left = [(k, own) for k, own in left if own]
    there = [e for e in every if e not in gone]
    here = [k for k, _ in left]
    rows = np.where(np.isin(every, there), rows, WITHHELD).astype(np.uint32)[here]
    sequences = [sequences[k] for k in here]
    moved, figures = move_prices(prices, rows, [own for _, own in left], sequences, step)
    small = [[there.index(e) for e in own] for _, own in left]
    alone, as_alone = move_prices(np.array(prices)[there], rows[:, there], small, sequences, step)
    assert moved[there].tolist() == pytest.approx(alone.tolist(), rel=1e-12)  # other sums
    assert [moved[e] for e in gone] == [prices[e] for e in gone]
    assert figures == pytest.approx(as_alone, rel=1e-12)


def test_silos_that_show_nothing_move_nothing():
    rows = np.full((2, 2), WITHHELD, np.uint32)
    moved, figures = move_prices([1.0, 2.0], rows, [range(1), range(1, 2)], [5, 6], 10.0)
    assert moved.tolist() == [1.0, 2.0]
    assert figures == {"silent_seats": 2.0, "off_diagonal": 0.0, "share_error": 0.0}


def test_a_router_that_wins_all_text_is_priced_until_each_wins_its_own():
    """A router that scores 6 nats too high takes its neighbours' text, until its price is 6."""
    rng = np.random.default_rng(3)
    seats, sequences = [range(1), range(1, 2), range(2, 3)], [400, 200, 200]
    scores = [rng.normal(-200, 4, (n, 3)) for n in sequences]
    for k, block in enumerate(scores):
        block[:, k] += 12
        block[:, 2] += 14  # the fault
    prices, mass = np.zeros(3), []
    for _ in range(60):
        rows = np.stack([withhold(np.bincount(route(s, prices), minlength=3), 10) for s in scores])
        prices, figures = move_prices(prices, rows, seats, sequences, 10.0)
        mass.append(figures["off_diagonal"])
    assert mass[0] > 0.3
    assert mass[-1] < 0.1
    assert prices[2] > max(prices[:2]) + 6


def test_shapes_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="seats by experts"):
        move_prices([0.0], np.zeros((1, 2), np.uint32), [range(1)], [5], 1.0)
