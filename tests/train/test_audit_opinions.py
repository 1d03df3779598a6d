"""What auditors compute: the scores that the worker computed, and those that tell lies apart."""

import numpy as np
import pytest

from smalltalk_fed.core.units import HELDOUT, UnitKey
from smalltalk_fed.errors import Malformed
from smalltalk_fed.mixture.audit import (
    decode_opinion,
    expert_sample,
    next_places,
    parts_of,
    router_sample,
    slice_places,
)
from smalltalk_fed.mixture.idlists import decode_experts
from smalltalk_fed.mixture.permutation import shard_ids
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.mixture.verdict import router_finding, slice_finding, tolerance_nats
from smalltalk_fed.model.state import state_from_file, state_to_bytes
from smalltalk_fed.train.audit import Auditor
from smalltalk_fed.train.experts import build_expert, train_expert
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score, sequence_losses
from smalltalk_fed.train.units import router_round, shard

SHARE, SAMPLE = np.arange(0, 40, 2), 123456789


@pytest.fixture(scope="module")
def manifest(make_run):
    return make_run(audit={"sample_sequences": 8}, compute={"train_dtype": "float32"})


@pytest.fixture(scope="module")
def rounds(manifest, corpus):
    """Router 0 after one round and after two."""
    first = router_round(manifest, corpus, 0, 1, None, SHARE)
    return first, router_round(manifest, corpus, 0, 2, first.parameters, SHARE)


def key(unit_id):
    return UnitKey.parse(unit_id)


def opinion_on(manifest, corpus, unit_id, ask, **more):
    auditor = Auditor(manifest, corpus, key(unit_id), SAMPLE, **more)
    return decode_opinion(manifest, key(unit_id), ask(auditor), auditor.redo)


def test_the_scores_of_the_next_chunk_are_those_of_the_block(manifest, corpus, rounds):
    for number, before in ((1, None), (2, rounds[0].parameters)):
        result = rounds[number - 1]
        opinion = opinion_on(
            manifest, corpus, f"router_round/0/{number}",
            lambda a, b=before, r=result: a.router_round(b, r.parameters, SHARE),
        )  # fmt: skip
        said_K = decode_scores(result.score_block, 40)[next_places(manifest, SAMPLE)]
        assert np.abs(said_K - opinion["next"]).max() <= 1 / 16
        finding = router_finding(manifest, opinion, said_K, {})
        assert not finding.fault
        assert finding.figures["own_gain"] > 0


def test_before_and_after_are_scores_under_the_two_states(manifest, corpus, rounds):
    before, after = rounds[0].parameters, rounds[1].parameters
    target = key("router_round/0/2")
    opinion = opinion_on(
        manifest, corpus, target.unit_id, lambda a: a.router_round(before, after, SHARE)
    )
    drawn = router_sample(manifest, target, SAMPLE, SHARE)
    models = [build_router(manifest, 0, data) for data in (before, after)]
    for part, split, ids in (
        ("public", corpus.heldout, drawn.public_ids),
        ("own", corpus.train, drawn.own_ids),
        ("rest", corpus.train, drawn.rest_ids),
    ):
        scores_Kx2 = score(models, split, ids, 8, batch_sequences=16)
        assert np.abs(opinion[f"{part}_before"] - scores_Kx2[:, 0]).max() <= 1 / 32
        assert np.abs(opinion[f"{part}_after"] - scores_Kx2[:, 1]).max() <= 1 / 32


def test_the_last_round_is_audited_without_a_block(manifest, corpus, rounds):
    last = router_round(manifest, corpus, 0, 3, rounds[1].parameters, SHARE)
    opinion = opinion_on(
        manifest, corpus, "router_round/0/3",
        lambda a: a.router_round(rounds[1].parameters, last.parameters, SHARE),
    )  # fmt: skip
    assert "next" not in opinion
    assert not router_finding(manifest, opinion, None, {}).fault


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_trained_again_gives_the_router_that_was_handed_in(
    manifest, corpus, rounds, number
):
    before, result = (None, rounds[0].parameters)[number - 1], rounds[number - 1]
    opinion = opinion_on(
        manifest, corpus, f"router_round/0/{number}",
        lambda a: a.router_round(before, result.parameters, SHARE), redo=True,
    )  # fmt: skip
    for text in ("own", "rest"):
        assert np.array_equal(opinion[f"{text}_redo"], opinion[f"{text}_after"])
    finding = router_finding(manifest, opinion, None, {})
    assert not finding.fault
    assert finding.figures["redo_apart"] == 0


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("wrong", ["other text", "half of it", "not at all"])
def test_a_router_that_was_trained_otherwise_is_not_the_one_that_its_share_makes(
    manifest, corpus, rounds, number, wrong
):
    before = (None, rounds[0].parameters, rounds[1].parameters)[number - 1]
    text = {"other text": SHARE + 1, "half of it": SHARE[::2], "not at all": SHARE[:1]}[wrong]
    lie = router_round(manifest, corpus, 0, number, before, text).parameters
    opinion = opinion_on(
        manifest, corpus, f"router_round/0/{number}",
        lambda a: a.router_round(before, lie, SHARE), redo=True,
    )  # fmt: skip
    finding = router_finding(manifest, opinion, None, {})
    assert finding.redone and "from what its share makes of it" in finding.fault


def test_half_precision_makes_nearly_the_same_router(make_run, corpus, rounds):
    rough = make_run(audit={"sample_sequences": 8}, compute={"train_dtype": "bfloat16"})
    opinion = opinion_on(
        rough, corpus, "router_round/0/2",
        lambda a: a.router_round(rounds[0].parameters, rounds[1].parameters, SHARE), redo=True,
    )  # fmt: skip
    finding = router_finding(rough, opinion, None, {})
    assert not finding.fault
    assert finding.figures["redo_apart"] > 0


@pytest.fixture(scope="module")
def routers(manifest, corpus):
    """One router for each of the corpus's two kinds of text."""
    kinds = [np.arange(kind, 96, 2) for kind in (0, 1)]
    return [router_round(manifest, corpus, e, 1, None, kinds[e]).parameters for e in (0, 1)]


@pytest.mark.parametrize("unit_id", ["shard/1", "shard/heldout"])
def test_a_slice_is_asked_about_under_all_routers(manifest, corpus, routers, unit_id):
    target = key(unit_id)
    opinion = opinion_on(manifest, corpus, unit_id, lambda a: a.shard(routers))
    assert tuple(opinion) == ("router_0", "router_1")
    places = slice_places(manifest, target, SAMPLE)
    heldout = target.index == HELDOUT
    ids = places
    if not heldout:
        ids = shard_ids(5, 96, *manifest.shard_range(1))[places]
    models = [build_router(manifest, e, data) for e, data in enumerate(routers)]
    split = corpus.heldout if heldout else corpus.train
    scores_KxE = score(models, split, ids, 8, batch_sequences=16)
    assert np.abs(opinion["router_1"] - scores_KxE[:, 1]).max() <= 1 / 32
    honest = shard(manifest, corpus, routers, 1, heldout=heldout)
    expert_N = decode_experts(honest.experts, 20 if heldout else 32, 2)
    assert not slice_finding(manifest, target, opinion, expert_N[places]).fault
    assert slice_finding(manifest, target, opinion, 1 - expert_N[places]).fault


def test_an_expert_is_asked_beside_its_router(manifest, corpus, routers, tmp_path):
    target, segment = key("train_expert/0"), np.arange(0, 96, 2)
    weights, _ = train_expert(manifest, corpus, 0, segment, None, tmp_path)
    routed = np.arange(20) % 2
    opinion = opinion_on(
        manifest, corpus, "train_expert/0",
        lambda a: a.expert(weights, routers, segment, routed),
    )  # fmt: skip
    assert tuple(opinion) == parts_of(manifest, target)
    drawn = expert_sample(manifest, target, SAMPLE, segment, routed)
    model = build_expert(manifest, "expert")
    state_from_file(model, weights)
    prefix_K, _ = sequence_losses(model, corpus.heldout, drawn.own_ids, 8, batch_sequences=16)
    assert np.abs(opinion["own_expert"] + prefix_K).max() <= 1 / 32
    models = [build_router(manifest, e, data) for e, data in enumerate(routers)]
    scores_Kx2 = score(models, corpus.heldout, drawn.other_ids, 8, batch_sequences=16)
    assert np.abs(opinion["other_router"] - scores_Kx2[:, 0]).max() <= 1 / 32
    assert np.abs(opinion["other_others"] - scores_Kx2[:, 1]).max() <= 1 / 32
    # All 15 predicted tokens, as if they were the 7 of a prefix.
    parts = sequence_losses(model, corpus.train, drawn.whole_ids, 8, batch_sequences=16)
    assert np.abs(opinion["whole"] + sum(parts) * 7 / 15).max() <= 1 / 32


def test_half_precision_stays_within_its_tolerance(make_run, corpus, rounds):
    rough = make_run(audit={"sample_sequences": 8}, compute={"score_dtype": "bfloat16"})
    exact = make_run(audit={"sample_sequences": 8})
    both = [
        opinion_on(
            manifest, corpus, "router_round/0/1",
            lambda a: a.router_round(None, rounds[0].parameters, SHARE),
        )
        for manifest in (rough, exact)
    ]  # fmt: skip
    apart = max(float(np.abs(both[0][name] - both[1][name]).max()) for name in both[0])
    assert 0 < apart <= tolerance_nats(rough)


def test_an_auditor_says_no_to_parameters_of_another_run_and_stops_when_told(
    manifest, make_run, corpus, rounds
):
    other = make_run(router={"model": {"hidden": 8, "layers": 1, "heads": 1}})
    strange = state_to_bytes(build_router(other, 0, None))
    auditor = Auditor(manifest, corpus, key("router_round/0/1"), SAMPLE)
    with pytest.raises(Malformed):
        auditor.router_round(None, strange, SHARE)
    busy = Auditor(manifest, corpus, key("router_round/0/1"), SAMPLE, should_stop=lambda: True)
    with pytest.raises(Stopped):
        busy.router_round(None, rounds[0].parameters, SHARE)
    calls = iter([False] * 3)
    later = Auditor(
        manifest, corpus, key("router_round/0/1"), SAMPLE,
        should_stop=lambda: next(calls, True), redo=True,
    )  # fmt: skip
    with pytest.raises(Stopped):  # while the round is trained again
        later.router_round(None, rounds[0].parameters, SHARE)
