"""What is found bad, and what is not, by one opinion."""

import numpy as np
import pytest
from support.opinions import SAMPLE, audit_manifest, honest_opinion

from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.mixture.assignment import assign
from smalltalk_fed.mixture.verdict import (
    agree,
    expert_finding,
    router_finding,
    slice_finding,
    tolerance_nats,
)

ROUND, SLICE, HELDOUT = "router_round/1/1", UnitKey.parse("shard/0"), UnitKey.parse("shard/heldout")


@pytest.fixture
def manifest():
    return audit_manifest()


def test_an_honest_round_is_good(manifest):
    for seed in range(50):
        opinion = honest_opinion(manifest, ROUND, seed)
        finding = router_finding(manifest, opinion, opinion["next"], {})
        assert not finding.fault
        assert finding.figures["own_gain"] > finding.figures["rest_gain"]
    last = honest_opinion(manifest, "router_round/1/2")
    assert not router_finding(manifest, last, None, {}).fault


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_may_differ_by_what_machines_do_and_no_more(dtype):
    manifest = audit_manifest(compute={"score_dtype": dtype})
    opinion = honest_opinion(manifest, ROUND)
    said = opinion["next"].copy()
    said[2] += 0.9 * tolerance_nats(manifest)
    assert not router_finding(manifest, opinion, said, {}).fault
    said[2] = opinion["next"][2] + 1.1 * tolerance_nats(manifest)
    assert "1 of 8 scores" in router_finding(manifest, opinion, said, {}).fault


@pytest.mark.parametrize("part", ["public", "own"])
def test_a_router_that_got_worse_is_bad(manifest, part):
    opinion = honest_opinion(manifest, ROUND)
    opinion[f"{part}_after"] = opinion[f"{part}_before"] - 20
    assert "got worse" in router_finding(manifest, opinion, opinion["next"], {}).fault


def test_a_router_that_gained_less_on_its_share_than_on_the_rest_is_doubted_not_bad(manifest):
    opinion = honest_opinion(manifest, ROUND)
    opinion["rest_after"] += 4
    assert not router_finding(manifest, opinion, None, {}).fault  # 6 nats and 7
    opinion["own_after"] -= 4
    finding = router_finding(manifest, opinion, None, {})
    assert finding.doubt and "on its share than on the rest" in finding.fault
    opinion["next"] -= 5  # what is proved is not only doubted
    assert not router_finding(manifest, opinion, opinion["next"] + 5, {}).doubt


def test_a_router_that_gained_far_less_on_its_share_than_its_peers_did_is_doubted(manifest):
    opinion = honest_opinion(manifest, ROUND)
    opinion["own_after"] -= 3  # as much as on the rest
    peers = {e: {"share_lead": 0.5 + 0.01 * e} for e in (0, 2, 3)}
    assert not router_finding(manifest, opinion, None, {}).fault
    finding = router_finding(manifest, opinion, None, peers)
    assert finding.doubt and "where others gained 0.52" in finding.fault
    few = {e: peers[e] for e in (0, 2)}
    assert not router_finding(manifest, opinion, None, few).fault
    opinion["own_after"] += 10
    assert not router_finding(manifest, opinion, None, peers).fault


def test_a_round_trained_again_decides_and_gains_do_not(manifest):
    for seed in range(50):
        opinion = honest_opinion(manifest, ROUND, seed, redo=True)
        opinion["own_after"] -= 9  # it gained nothing, and that is what its share gives
        opinion["own_redo"] -= 9
        finding = router_finding(manifest, opinion, opinion["next"], {})
        assert not finding.fault
        assert 0 < finding.figures["redo_apart"] < 0.01
        assert "share_lead" in finding.figures  # peers are measured by it


@pytest.mark.parametrize("part", ["own", "rest"])
def test_a_router_that_its_share_does_not_make_is_bad_however_much_it_gained(manifest, part):
    opinion = honest_opinion(manifest, ROUND, redo=True)
    opinion[f"{part}_after"] += 3.0  # a tenth of a nat a token
    finding = router_finding(manifest, opinion, opinion["next"], {})
    assert finding.redone and not finding.doubt
    assert "from what its share makes of it" in finding.fault
    lone = audit_manifest(experts=1)
    alone = honest_opinion(lone, "router_round/0/1", redo=True)
    assert not router_finding(lone, alone, alone["next"], {}).fault
    alone["own_redo"] += 3.0
    assert router_finding(lone, alone, alone["next"], {}).redone


def test_scores_that_are_not_the_router_s_are_bad_whoever_trained_it_again(manifest):
    opinion = honest_opinion(manifest, ROUND, redo=True)
    finding = router_finding(manifest, opinion, opinion["next"] + 1, {})
    assert "scores are not its router's" in finding.fault
    assert not finding.redone


def test_half_precision_is_given_more_room():
    limits = [
        tolerance_nats(audit_manifest(compute={"score_dtype": dtype}))
        for dtype in ("float32", "bfloat16")
    ]
    assert 0.1 < limits[0] < 0.2 < 1.0 < limits[1] < 2.0


def slice_scores(manifest, seed=0):
    opinion = honest_opinion(manifest, "shard/0", seed)
    return opinion, np.stack(list(opinion.values()), axis=1)


def test_any_part_of_an_optimal_division_passes_though_sequences_are_displaced(manifest):
    random = np.random.default_rng(3)
    scores = (random.normal(-128, 15, (64, 1)) + random.normal(0, 8, (64, 4))).astype(np.float32)
    scores[:, 0] += 5  # everybody's best: most of its sequences have to go elsewhere
    best = assign(scores, [16, 16, 16, 16]).expert_N
    assert np.mean(scores.argmax(axis=1) != best) > 0.2
    for _ in range(30):
        places = random.choice(64, SAMPLE, replace=False)
        opinion = {f"router_{e}": scores[places, e] for e in range(4)}
        assert not slice_finding(manifest, SLICE, opinion, best[places]).fault


def test_a_division_at_random_or_of_other_experts_is_bad(manifest):
    for seed in range(20):
        opinion, scores = slice_scores(manifest, seed)
        good = assign(scores, [2, 2, 2, 2]).expert_N
        assert not slice_finding(manifest, SLICE, opinion, good).fault
        assert "the division loses" in slice_finding(manifest, SLICE, opinion, (good + 1) % 4).fault
        swapped = good.copy()
        one, other = np.flatnonzero(good == 0)[0], np.flatnonzero(good == 1)[0]
        swapped[[one, other]] = 1, 0
        assert slice_finding(manifest, SLICE, opinion, swapped).fault


def test_greedy_divisions_may_lose_something(manifest):
    by_order, random = audit_manifest(assignment={"method": "paper"}), np.random.default_rng(3)
    scores = (random.normal(-128, 15, (64, 1)) + random.normal(0, 8, (64, 4))).astype(np.float32)
    greedy = assign(scores, [16, 16, 16, 16], "paper").expert_N
    not_the_best = 0
    for _ in range(40):
        places = random.choice(64, SAMPLE, replace=False)
        opinion = {f"router_{e}": scores[places, e] for e in range(4)}
        not_the_best += bool(slice_finding(manifest, SLICE, opinion, greedy[places]).fault)
        assert not slice_finding(by_order, SLICE, opinion, greedy[places]).fault
    assert not_the_best > 5
    opinion, scores = slice_scores(manifest)
    good = assign(scores, [2, 2, 2, 2]).expert_N
    assert slice_finding(by_order, SLICE, opinion, (good + 1) % 4).fault


def test_held_out_text_goes_to_its_best_router(manifest):
    opinion, scores = slice_scores(manifest)
    best = scores.argmax(axis=1).astype(np.int32)
    assert not slice_finding(manifest, HELDOUT, opinion, best).fault
    close = opinion | {"router_0": opinion["router_0"].copy()}
    worse = int(np.flatnonzero(best != 0)[0])
    close["router_0"][worse] = scores[worse].max() - tolerance_nats(manifest)
    best[worse] = 0
    assert not slice_finding(manifest, HELDOUT, close, best).fault
    assert "1 of 8 held-out" in slice_finding(manifest, HELDOUT, opinion, best).fault


def test_an_expert_of_its_own_text_is_good_and_one_of_other_text_is_bad(manifest):
    for seed in range(30):
        opinion = honest_opinion(manifest, "train_expert/2", seed)
        finding = expert_finding(manifest, opinion, {})
        assert not finding.fault
        assert finding.figures["own_lead"] == pytest.approx(20 / 32, abs=0.1)
        opinion["own_expert"] -= 35
        opinion["other_expert"] += 35
        assert "its router prefers a text" in expert_finding(manifest, opinion, {}).fault


def test_an_expert_worse_than_guessing_is_bad(manifest):
    opinion = honest_opinion(manifest, "train_expert/2")
    opinion["whole"] = np.full(SAMPLE, -32 * 6.1, np.float32)  # log 300 = 5.7, and a margin
    assert "worse than guessing" in expert_finding(manifest, opinion, {}).fault


def test_an_expert_far_behind_its_peers_is_bad_once_there_are_three(manifest):
    opinion = honest_opinion(manifest, "train_expert/2")
    good = {e: {"own_lead": 2.0 + 0.01 * e} for e in range(3)}
    assert not expert_finding(manifest, opinion, good).fault  # it beats its router all the same
    for text in ("own", "other"):
        opinion[f"{text}_expert"] = opinion[f"{text}_expert"] - 30
    lead = expert_finding(manifest, opinion, {}).figures["own_lead"]
    peers = {e: {"own_lead": lead + 1.2 + 0.01 * e} for e in range(3)}
    assert "behind its peers" in expert_finding(manifest, opinion, peers).fault
    assert not expert_finding(manifest, opinion, {0: peers[0], 1: peers[1]}).fault
    near = {e: {"own_lead": lead + 0.2} for e in range(3)}
    assert not expert_finding(manifest, opinion, near).fault


def test_opinions_agree_if_every_score_that_both_have_does(manifest):
    opinion = honest_opinion(manifest, ROUND)
    other = {name: scores + 0.9 * tolerance_nats(manifest) for name, scores in opinion.items()}
    assert agree(manifest, opinion, other)
    redone = honest_opinion(manifest, ROUND, redo=True)
    assert agree(manifest, opinion, redone) and agree(manifest, redone, opinion)
    other["rest_after"] = other["rest_after"].copy()
    other["rest_after"][3] += 0.2 * tolerance_nats(manifest)
    assert not agree(manifest, opinion, other)


def test_two_that_trained_a_round_again_agree_within_what_a_training_makes_of_rounding(manifest):
    one = honest_opinion(manifest, ROUND, redo=True)
    other = dict(one)
    for name in ("own_redo", "rest_redo"):
        other[name] = one[name] + np.where(np.arange(SAMPLE) % 2, 0.5, -0.5).astype(np.float32)
    assert agree(manifest, one, other)
    other["own_redo"] = one["own_redo"] + 3.0
    assert not agree(manifest, one, other)
