"""Segments: every sequence in exactly one, ascending."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.mixture.segments import segments_from_shards


def shard(ids, experts):
    return np.array(ids, np.int64), np.array(experts, np.int32)


@given(st.permutations(range(30)), st.integers(1, 4), st.integers(1, 30), st.data())
def test_every_sequence_is_in_the_segment_of_its_expert(ids, experts, length, data):
    told = data.draw(st.lists(st.integers(0, experts - 1), min_size=30, max_size=30))
    shards = (
        shard(ids[start : start + length], told[start : start + length])
        for start in range(0, 30, length)
    )
    segments = segments_from_shards(shards, experts)
    expert_of = dict(zip(ids, told, strict=True))
    assert len(segments) == experts
    for expert, segment in enumerate(segments):
        assert segment.dtype == np.int64
        assert segment.tolist() == [i for i in range(30) if expert_of[i] == expert]


def test_no_shards_make_empty_segments():
    assert [segment.size for segment in segments_from_shards([], 3)] == [0, 0, 0]


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="sequence 5 is in two shards"):
        segments_from_shards([shard([1, 5], [0, 0]), shard([5], [1])], 2)
    with pytest.raises(ValueError, match="2 sequences and 1 experts"):
        segments_from_shards([shard([1, 5], [0])], 2)
    for expert in (-1, 2):
        with pytest.raises(ValueError, match="not among 2"):
            segments_from_shards([shard([1], [expert])], 2)
