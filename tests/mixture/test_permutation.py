"""Keyed permutations: bijective, the same everywhere, and statistically good."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from smalltalk_fed.mixture.permutation import (
    Permutation,
    chunk_ids,
    derive_key,
    training_order,
)

MASK_64 = (1 << 64) - 1


def plain_forward(n: int, key: bytes, place: int) -> int:
    """The naive twin: one place, Python's own integers."""
    stream = hashlib.shake_256(b"smalltalk-fed feistel 1\0" + key).digest(96)
    keys = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 96, 8)]
    half = next(h for h in range(4, 40) if 4**h >= n)

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK_64
        return x ^ (x >> 31)

    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for k in keys:
            left, right = right, left ^ (mix((right + k) & MASK_64) & ((1 << half) - 1))
        place = (left << half) | right
        if n == 1:
            return 0
        if place < n:
            return place


@given(st.integers(1, 3000), st.binary(max_size=40))
def test_it_is_a_bijection_with_its_inverse(n, key):
    permutation = Permutation(n, key)
    images = permutation.range(0, n)
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), np.arange(n))
    assert np.array_equal(permutation.inverse(images), np.arange(n))


@given(st.integers(1, 1 << 62), st.binary(max_size=40), st.data())
@settings(max_examples=60)
def test_it_equals_its_naive_twin_at_any_place(n, key, data):
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    images = Permutation(n, key).forward(np.array(places))
    assert images.tolist() == [plain_forward(n, key, place) for place in places]
    assert Permutation(n, key).inverse(images).tolist() == places


def test_blocks_do_not_show():
    permutation = Permutation(100_003, b"blocks")
    images = permutation.range(0, 100_003)
    assert len(set(images.tolist())) == 100_003
    assert np.array_equal(images[40_000:70_000], permutation.range(40_000, 70_000))
    assert permutation.forward(np.array([[5, 90_000]])).tolist() == [[images[5], images[90_000]]]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_few_are_equally_likely(n):
    draws = 30 * math.factorial(n)
    seen = Counter(
        tuple(Permutation(n, derive_key(0, "orders", i)).range(0, n).tolist()) for i in range(draws)
    )
    counts = [seen[order] for order in itertools.permutations(range(n))]
    assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [7, 16, 64])
def test_every_place_goes_everywhere_equally_often(n):
    draws = 1500
    seen = np.zeros((n, n))
    for i in range(draws):
        seen[np.arange(n), Permutation(n, derive_key(1, "places", i)).range(0, n)] += 1
    statistic = ((seen - draws / n) ** 2 / (draws / n)).sum() / (n - 1) ** 2
    assert abs(statistic - 1) < 5 * math.sqrt(2) / (n - 1)


def test_neighbours_are_not_correlated():
    images = Permutation(50_000, b"serial").range(0, 50_000).astype(float)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(images, np.arange(50_000))[0, 1]) < 0.02


def test_golden_values():
    """A change here makes every running training visit other text: never change them."""
    assert derive_key(1, "router", "pass", 0).hex() == (
        "b648457ae6404c6db92b2860ce6c12b91152bf742ec07a58d62e7a052f3f4cf7"
    )
    assert Permutation(10, derive_key(1, "a")).range(0, 10).tolist() == [
        *(2, 1, 6, 9, 5, 8, 3, 7, 4, 0),
    ]
    big = Permutation(1_000_003, b"k").range(500_000, 500_005)
    assert big.tolist() == [497277, 91062, 628366, 72577, 320506]
    huge = Permutation(1 << 40, b"k").range(0, 3)
    assert huge.tolist() == [492345072162, 328781546826, 892608921415]
    assert chunk_ids(7, 10, 1, 7).tolist() == [5, 2, 4, 7, 9, 8, 2]
    assert training_order(3, [10, 20, 30], 8, "expert", 2).tolist() == [
        *(30, 10, 20, 10, 30, 20, 20, 30),
    ]


def test_keys_of_different_purposes_differ():
    parts = [("ab", "c"), ("a", "bc"), ("abc",), (), ("1",), (1,), (11,), (1, 1), (-1,), ("",)]
    assert len({derive_key(0, *purpose) for purpose in parts}) == len(parts)
    assert derive_key(0) != derive_key(1)
    assert derive_key(0, np.int64(3)) == derive_key(0, 3)
    with pytest.raises(TypeError):
        derive_key(0, True)


@pytest.mark.parametrize("place", [-1, 5])
def test_a_place_outside_is_refused(place):
    with pytest.raises(ValueError, match="within 0 and 4"):
        Permutation(5, b"").forward(np.array([place]))


def test_sizes_and_types_are_checked():
    with pytest.raises(ValueError, match="size"):
        Permutation(-1, b"")
    with pytest.raises(ValueError, match="integers"):
        Permutation(5, b"").forward(np.array([1.0]))
    assert Permutation(0, b"").range(0, 0).size == 0


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**40))
def test_every_pass_uses_every_id_once(n_sequences, chunk_sequences, seed):
    chunks = -(-3 * n_sequences // chunk_sequences)
    stream = np.concatenate(
        [chunk_ids(seed, n_sequences, c, chunk_sequences) for c in range(chunks)]
    )
    assert stream.dtype == np.int64
    for number in range(3):
        one_pass = stream[number * n_sequences : (number + 1) * n_sequences]
        assert sorted(one_pass) == list(range(n_sequences))


def test_passes_and_purposes_are_new_permutations():
    passes = chunk_ids(0, 50, 0, 100).reshape(2, 50)
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(chunk_ids(0, 50, 0, 50), chunk_ids(0, 50, 0, 50, "sharding"))
    assert not np.array_equal(chunk_ids(0, 50, 0, 50), chunk_ids(1, 50, 0, 50))


@pytest.mark.parametrize("arguments", [(0, 0, 0, 5), (0, 5, -1, 5), (0, 5, 0, 0)])
def test_a_chunk_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"corpus|chunk"):
        chunk_ids(*arguments)


@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=20, unique=True), st.integers(0, 70))
def test_the_training_order_is_pass_after_pass(ids, count):
    order = training_order(5, np.array(ids), count, "expert", 0)
    assert order.size == count
    for start in range(0, count, len(ids)):
        one_pass = order[start : start + len(ids)].tolist()
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(ids)
    longer = training_order(5, np.array(ids), count + 7, "expert", 0)
    assert np.array_equal(longer[:count], order)


def test_a_training_order_of_nothing():
    assert training_order(0, np.zeros(0, np.int64), 0, "x").size == 0
    with pytest.raises(ValueError, match="list of 0"):
        training_order(0, np.zeros(0, np.int64), 1, "x")
