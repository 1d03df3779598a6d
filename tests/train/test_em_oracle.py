"""Algorithm 1 in one process: balanced, repeatable, and it finds the kinds of text."""

import numpy as np
import pytest

from smalltalk_fed.core.job_messages import AssignJob, JobFinished, SegmentsJob
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.jobs import run_job
from smalltalk_fed.mixture.idlists import decode_ids
from smalltalk_fed.mixture.permutation import chunk_ids
from smalltalk_fed.train.em import run_em
from smalltalk_fed.train.units import router_round, shard


@pytest.fixture(scope="module")
def manifest(make_run):
    return make_run(router={"rounds": 6})


@pytest.fixture(scope="module")
def oracle(manifest, corpus):
    return run_em(manifest, corpus)


def test_every_round_takes_fresh_sequences_and_gives_each_expert_its_share(oracle):
    assert len(oracle.rounds) == 6
    for number, part in enumerate(oracle.rounds):
        assert np.array_equal(part.ids, chunk_ids(5, 96, number, 40))
        assert np.bincount(part.experts).tolist() == [20, 20]


def test_the_first_assignment_is_random_and_later_ones_follow_the_scores(oracle):
    kinds = oracle.rounds[0].ids % 2
    assert 0.2 < (oracle.rounds[0].experts == kinds).mean() < 0.8
    assert oracle.rounds[0].figures["displaced_fraction"] == 0
    last = oracle.rounds[-1]
    agreement = (last.experts == last.ids % 2).mean()
    assert max(agreement, 1 - agreement) > 0.9


def test_both_splits_are_divided_the_training_split_evenly(oracle):
    assert np.bincount(oracle.train_experts).tolist() == [48, 48]
    assert len(oracle.heldout_experts) == 20
    segments = [oracle.segment(expert) for expert in (0, 1)]
    assert sorted(np.concatenate(segments).tolist()) == list(range(96))
    agreement = (oracle.heldout_experts == np.arange(20) % 2).mean()
    assert max(agreement, 1 - agreement) > 0.9


def test_the_same_seed_gives_the_same_run_and_another_does_not(manifest, oracle, corpus, make_run):
    again = run_em(manifest, corpus)
    assert again.routers == oracle.routers
    assert np.array_equal(again.train_experts, oracle.train_experts)
    other = run_em(make_run(run={"seed": 6}, router={"rounds": 1}), corpus)
    assert other.routers != oracle.routers


def test_rounds_are_told_as_they_happen(corpus, make_run):
    seen = []
    run_em(
        make_run(router={"rounds": 2}),
        corpus,
        on_round=lambda number, part: seen.append((number, part.figures["loss_mean"] > 0)),
    )
    assert seen == [(1, True), (2, True)]


def test_units_and_jobs_done_apart_give_the_oracles_assignments(manifest, oracle, corpus, tmp_path):
    """What nodes and coordinator do between them, without the messages."""
    blobs, parameters, scores = BlobStore(tmp_path), [None, None], ()
    for number in range(1, 7):
        shares = run_job(manifest, AssignJob(f"assign/{number}", number, scores), tmp_path)
        assert isinstance(shares, JobFinished)
        results = []
        for expert in (1, 0):  # whoever comes first
            ids = decode_ids(blobs.get(shares.outputs[expert].digest))
            mine = oracle.rounds[number - 1]
            assert sorted(ids.tolist()) == sorted(mine.ids[mine.experts == expert].tolist())
            results.append(router_round(manifest, corpus, expert, number, parameters[expert], ids))
        parameters = [results[1].parameters, results[0].parameters]
        if number < 6:
            scores = tuple(blobs.put("scores", result.score_block) for result in reversed(results))
    assert parameters == oracle.routers
    shards = tuple(
        blobs.put("experts", shard(manifest, corpus, parameters, index).experts)
        for index in range(manifest.shard_count)
    )
    segments = run_job(manifest, SegmentsJob("segments", shards), tmp_path)
    for expert in (0, 1):
        ids = decode_ids(blobs.get(segments.outputs[expert].digest))
        assert np.array_equal(ids, oracle.segment(expert))
