"""What an opinion is about and how it is laid out: the same for auditor and judge."""

import numpy as np
import pytest
from support.opinions import CHUNK, SAMPLE, audit_manifest, honest_opinion

from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.mixture.audit import (
    decode_opinion,
    encode_opinion,
    expert_sample,
    next_places,
    opinion_scores,
    parts_of,
    router_sample,
    slice_places,
    uniform_nats,
)
from smalltalk_fed.mixture.permutation import chunk_ids

UNITS = ("router_round/1/1", "router_round/1/2", "shard/0", "shard/heldout", "train_expert/3")


def key(unit_id):
    return UnitKey.parse(unit_id)


@pytest.mark.parametrize("unit_id", UNITS)
@pytest.mark.parametrize("experts", [1, 2, 4, 32])
@pytest.mark.parametrize("heldout", [0, 40])
@pytest.mark.parametrize("redo", [False, True])
def test_an_opinion_comes_back_as_it_went_in_and_fits_its_limit(unit_id, experts, heldout, redo):
    manifest = audit_manifest(experts=experts, heldout=heldout)
    target = key(unit_id if experts > 3 else unit_id.replace("/1/", "/0/").replace("/3", "/0"))
    opinion = honest_opinion(manifest, target.unit_id, redo=redo)
    data = encode_opinion(manifest, target, opinion, redo)
    assert len(data) <= size_limit(manifest, "audit")
    found = decode_opinion(manifest, target, data, redo)
    assert tuple(found) == parts_of(manifest, target, redo)
    assert sum(map(len, found.values())) == opinion_scores(manifest, target, redo)
    for name, scores in opinion.items():
        assert np.abs(found[name] - scores).max() <= 1 / 32


def test_parts_that_there_is_nothing_for_are_left_out():
    first, last = key("router_round/0/1"), key("router_round/0/2")
    manifest = audit_manifest()
    assert parts_of(manifest, first)[0] == "next"
    assert "next" not in parts_of(manifest, last)
    assert not any("public" in name for name in parts_of(audit_manifest(heldout=0), first))
    lone = audit_manifest(experts=1)
    assert not any("rest" in name for name in parts_of(lone, first))
    assert not any("other" in name for name in parts_of(lone, key("train_expert/0")))
    assert parts_of(manifest, key("shard/0")) == ("router_0", "router_1", "router_2", "router_3")


def test_a_round_that_was_trained_again_has_two_parts_more_and_nothing_else_has():
    manifest, target = audit_manifest(), key("router_round/0/1")
    more = parts_of(manifest, target, redo=True)
    assert more == (*parts_of(manifest, target), "own_redo", "rest_redo")
    assert parts_of(audit_manifest(experts=1), target, redo=True)[-1] == "own_redo"
    for other in ("shard/0", "train_expert/0"):
        assert parts_of(manifest, key(other), redo=True) == parts_of(manifest, key(other))
    data = encode_opinion(manifest, target, honest_opinion(manifest, target.unit_id))
    with pytest.raises(ValueError, match="are expected"):
        decode_opinion(manifest, target, data, redo=True)


def test_an_opinion_of_another_unit_or_with_too_few_scores_is_none():
    manifest = audit_manifest()
    data = encode_opinion(manifest, key("shard/0"), honest_opinion(manifest, "shard/0"))
    with pytest.raises(ValueError, match="are expected"):
        decode_opinion(manifest, key("train_expert/0"), data)
    with pytest.raises(ValueError):
        decode_opinion(manifest, key("shard/0"), data[:-2])


def test_what_is_no_number_or_beyond_all_reason_is_the_worst_score():
    manifest, target = audit_manifest(), key("router_round/0/1")
    opinion = honest_opinion(manifest, target.unit_id)
    opinion["next"][:4] = [np.nan, np.inf, -np.inf, -1e9]
    found = decode_opinion(manifest, target, encode_opinion(manifest, target, opinion))
    worst = -4 * uniform_nats(manifest)
    assert np.abs(found["next"][:4] - worst).max() < 0.1
    # The others keep their fine steps.
    assert np.abs(found["own_after"] - opinion["own_after"]).max() <= 1 / 32


def test_a_routers_sample_is_of_its_share_and_of_the_rest_of_its_chunk():
    manifest, target = audit_manifest(), key("router_round/1/1")
    chunk = chunk_ids(manifest.config.run.seed, 256, 0, CHUNK)
    share = chunk[::4]
    drawn = router_sample(manifest, target, 77, share)
    assert set(drawn.own_ids) <= set(share)
    assert set(drawn.rest_ids) <= set(chunk) - set(share)
    following = chunk_ids(manifest.config.run.seed, 256, 1, CHUNK)
    assert np.array_equal(drawn.next_ids, following[next_places(manifest, 77)])
    assert drawn.public_ids.max() < 40
    for ids in (drawn.own_ids, drawn.rest_ids, drawn.next_ids, drawn.public_ids):
        assert len(ids) == len(set(ids)) == SAMPLE
    again = router_sample(manifest, target, 77, share[::-1])
    assert np.array_equal(again.own_ids, drawn.own_ids)
    other = router_sample(manifest, target, 78, share)
    assert not np.array_equal(other.own_ids, drawn.own_ids)
    assert not len(router_sample(manifest, key("router_round/1/2"), 77, share).next_ids)


def test_a_share_smaller_than_the_sample_is_gone_through_again():
    manifest, target = audit_manifest(), key("router_round/1/1")
    chunk = chunk_ids(manifest.config.run.seed, 256, 0, CHUNK)
    drawn = router_sample(manifest, target, 5, chunk[:3])
    assert len(drawn.own_ids) == SAMPLE
    assert set(drawn.own_ids) == set(chunk[:3])
    everything = router_sample(manifest, target, 5, chunk)
    assert set(everything.rest_ids) <= set(chunk)


def test_places_of_a_slice_are_within_it():
    manifest = audit_manifest()
    places = slice_places(manifest, key("shard/3"), 1)
    assert len(set(places)) == SAMPLE and places.max() < 64
    heldout = slice_places(manifest, key("shard/heldout"), 1)
    assert len(set(heldout)) == SAMPLE and heldout.max() < 40


def test_an_experts_sample_is_held_out_text_or_training_text_where_there_is_none():
    manifest, target = audit_manifest(), key("train_expert/2")
    segment, routed = np.arange(10, 80), np.arange(40) % 4
    drawn = expert_sample(manifest, target, 9, segment, routed)
    assert drawn.heldout
    assert set(drawn.own_ids) <= set(np.flatnonzero(routed == 2))
    assert set(drawn.other_ids) <= set(np.flatnonzero(routed != 2))
    assert set(drawn.whole_ids) <= set(segment)
    for nothing in (np.zeros(40, int), np.full(40, 2), np.zeros(0, int)):
        drawn = expert_sample(manifest, target, 9, segment, nothing)
        assert not drawn.heldout
        assert set(drawn.own_ids) <= set(segment)
        assert not set(drawn.other_ids) & set(segment)
    lone = expert_sample(audit_manifest(experts=1), key("train_expert/0"), 9, segment, routed * 0)
    assert lone.heldout
