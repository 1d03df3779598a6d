"""Blocks that look odd beside the others, and blocks that don't."""

import numpy as np
import pytest

from smalltalk_fed.mixture.plausibility import odd_blocks


def honest(experts, n=512, seed=0, kinds=4):
    """Text as hard as it is, and routers that each know one kind of it better."""
    random = np.random.default_rng(seed)
    kind_N = random.integers(0, kinds, n)
    hard_N = -200 + random.normal(0, 30, n) + 10 * kind_N
    scores = hard_N[:, None] + random.normal(0, 4, (n, experts))
    scores += np.where(kind_N[:, None] == np.arange(experts) % kinds, 15, 0)
    return scores.astype(np.float32)


@pytest.mark.parametrize("experts", [2, 3, 4, 8, 32])
def test_honest_blocks_are_not_odd(experts):
    for seed in range(20):
        assert odd_blocks(honest(experts, seed=seed)) == {}


def shuffled(scores, e):
    scores[:, e] = np.random.default_rng(1).permutation(scores[:, e])


def at_random(scores, e):
    scores[:, e] = np.random.default_rng(1).normal(-200, 30, len(scores))


def constant(scores, e):
    scores[:, e] = -200


def copied(scores, e):
    scores[:, e] = scores[:, (e + 1) % scores.shape[1]]


def nearly_copied(scores, e):
    copied(scores, e)
    scores[:, e] += np.random.default_rng(1).normal(0, 0.2, len(scores))


def raised(scores, e):
    scores[:, e] *= 0.5


def steep(scores, e):
    scores[:, e] = -200 + 8 * (scores[:, e] + 200)


def easy_raised(scores, e):
    easy = scores[:, e] > np.median(scores[:, e])
    scores[easy, e] += scores[:, e].std()


LIES = [shuffled, at_random, constant, copied, nearly_copied, raised, steep, easy_raised]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("experts", [3, 4, 8, 32])
def test_a_lie_is_odd_and_honest_blocks_beside_it_are_not(lie, experts):
    for liar in (0, experts - 1):
        scores = honest(experts)
        lie(scores, liar)
        odd = odd_blocks(scores)
        victim = {(liar + 1) % experts} if "copied" in lie.__name__ else set()
        assert set(odd) == {liar} | victim


@pytest.mark.parametrize("lie", LIES)
def test_of_two_blocks_both_are_looked_at(lie):
    scores = honest(2)
    lie(scores, 1)
    assert odd_blocks(scores)


def test_the_reason_says_what_is_odd():
    scores = honest(4)
    shuffled(scores, 2)
    assert "nothing to do with the others'" in odd_blocks(scores)[2]
    scores = honest(4)
    copied(scores, 2)
    assert odd_blocks(scores)[2] == "its scores are nearly those of router 3"
    scores = honest(4)
    raised(scores, 2)
    assert "above the others'" in odd_blocks(scores)[2]


def test_a_lone_block_and_a_large_chunk_are_no_trouble():
    assert odd_blocks(honest(1)) == {}
    few = honest(4, n=255)
    at_random(few, 1)
    assert odd_blocks(few) == {}
    large = honest(4, n=40_000)
    assert odd_blocks(large) == {}
    at_random(large, 1)
    assert set(odd_blocks(large)) == {1}
