"""What router rounds and shards give: functions of their inputs, nothing more."""

import copy

import numpy as np
import pytest
import torch

from smalltalk_fed.errors import Malformed
from smalltalk_fed.host.jobs import capacity
from smalltalk_fed.mixture.assignment import assign
from smalltalk_fed.mixture.idlists import decode_experts
from smalltalk_fed.mixture.permutation import chunk_ids, shard_ids
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.model.state import state_from_bytes, state_to_bytes
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score, score_one
from smalltalk_fed.train.units import router_optimizer, router_round, shard

SHARE = np.array([40, 3, 91, 17, 5, 22, 60, 61, 13, 77, 31, 8, 50, 49, 2, 90, 66, 11, 35, 29])


@pytest.fixture(scope="module")
def first(make_run, corpus):
    return router_round(make_run(), corpus, 0, 1, None, SHARE)


def test_a_round_trains_once_over_the_share_and_scores_the_next_chunk(first, make_run, corpus):
    manifest = make_run()
    assert first.figures["steps"] == 3  # 20 sequences, 8 a batch, the last of four
    assert first.figures["tokens"] == 3 * 8 * 8
    model = build_router(manifest, 0, first.parameters)
    ids = chunk_ids(5, 96, 1, 40)
    scores_N = score_one(model, corpus.train, ids, 8, batch_sequences=16)
    decoded = decode_scores(first.score_block, 40)
    assert np.abs(decoded - scores_N).max() <= 1 / 64 + 1e-5


def test_a_round_is_a_function_of_its_inputs_and_not_of_the_shares_order(first, make_run, corpus):
    torch.rand(5)
    again = router_round(make_run(), corpus, 0, 1, None, SHARE[::-1])
    assert (again.parameters, again.score_block) == (first.parameters, first.score_block)


def test_routers_start_from_different_weights_and_rounds_go_on_from_the_last(
    first, make_run, corpus
):
    manifest = make_run()
    starts = [state_to_bytes(build_router(manifest, expert, None)) for expert in (0, 1)]
    assert starts[0] != starts[1]
    second = router_round(manifest, corpus, 0, 2, first.parameters, SHARE)
    fresh = router_round(manifest, corpus, 0, 2, None, SHARE)
    assert second.parameters not in (first.parameters, fresh.parameters)


def test_the_last_round_scores_nothing(first, make_run, corpus):
    last = router_round(make_run(), corpus, 0, 3, first.parameters, SHARE)
    assert last.score_block is None
    assert last.parameters


def test_the_loss_may_be_on_the_whole_sequence(first, make_run, corpus):
    manifest = make_run(router={"train_tokens": "sequence"})
    whole = router_round(manifest, corpus, 0, 1, None, SHARE)
    assert whole.figures["tokens"] == 3 * 8 * 16
    assert whole.parameters != first.parameters


def test_a_rounds_warm_up_is_short():
    from smalltalk_fed.config.run import Optimizer

    settings = Optimizer(learning_rate=0.1)
    assert router_optimizer(settings, 40).warmup_steps == 5
    assert router_optimizer(settings, 8).warmup_steps == 2
    assert router_optimizer(settings, 3).warmup_steps == 0
    given = settings.model_copy(update={"warmup_steps": 9})
    assert router_optimizer(given, 100).warmup_steps == 9


def test_parameters_of_another_shape_are_refused(make_run, corpus):
    other = make_run(router={"model": {"hidden": 8, "layers": 1, "heads": 1}})
    parameters = state_to_bytes(build_router(other, 0, None))
    with pytest.raises(Malformed):
        router_round(make_run(), corpus, 0, 2, parameters, SHARE)


def test_a_round_reports_progress_and_stops_when_told(make_run, corpus):
    seen = []
    router_round(
        make_run(), corpus, 0, 1, None, SHARE, on_progress=lambda part, figures: seen.append(part)
    )
    assert seen
    assert all(0 < part <= 1 for part in seen)
    with pytest.raises(Stopped):
        router_round(make_run(), corpus, 0, 1, None, SHARE, should_stop=lambda: True)
    asked = []

    def stop_in_scoring():
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Stopped):
        router_round(make_run(), corpus, 0, 1, None, SHARE, should_stop=stop_in_scoring)


@pytest.fixture(scope="module")
def routers(make_run):
    """Routers that prefer tokens of one half each."""
    manifest, found = make_run(), []
    for expert in (0, 1):
        model = build_router(manifest, expert, None)
        with torch.no_grad():
            embedding = model.model.embed_tokens.weight
            half = slice(0, 16) if expert == 0 else slice(16, 32)
            embedding[half, 0] += 1.0
        found.append(state_to_bytes(model))
    return found


def test_a_shard_is_the_balanced_assignment_of_its_slice(routers, make_run, corpus):
    manifest = make_run()
    assert manifest.shard_count == 3
    models = [build_router(manifest, expert, data) for expert, data in enumerate(routers)]
    for index in range(3):
        result = shard(manifest, corpus, routers, index)
        ids = shard_ids(5, 96, *manifest.shard_range(index))
        scores_NxE = score(models, corpus.train, ids, 8, batch_sequences=16)
        expected = assign(scores_NxE, capacity(manifest, 32), "optimal")
        experts_N = decode_experts(result.experts, 32, 2)
        assert np.array_equal(experts_N, expected.expert_N)
        assert np.bincount(experts_N).tolist() == [16, 16]
        assert np.array_equal(result.prices, expected.prices_E)
        assert result.figures["sequences"] == 32
        assert 0 <= result.figures["displaced_fraction"] <= 1


def test_of_an_expert_that_has_left_the_others_share_the_slice_evenly(routers, make_run, corpus):
    manifest = make_run(run={"experts": 3})
    left = [routers[0], None, routers[1]]
    result = shard(manifest, corpus, left, 0)
    experts_N = decode_experts(result.experts, 32, 3)
    both = decode_experts(shard(make_run(), corpus, routers, 0).experts, 32, 2)
    assert np.array_equal(experts_N, 2 * both)
    assert np.bincount(experts_N).tolist() == [16, 0, 16]
    assert result.prices[1] == 0


def test_weighted_capacity_gives_one_expert_more(routers, make_run, corpus):
    manifest = make_run(assignment={"capacity": [3.0, 1.0]})
    experts_N = decode_experts(shard(manifest, corpus, routers, 0).experts, 32, 2)
    assert np.bincount(experts_N).tolist() == [24, 8]


def test_held_out_sequences_go_to_their_best_router_whatever_the_balance(routers, make_run, corpus):
    manifest = make_run()
    result = shard(manifest, corpus, routers, 0, heldout=True)
    experts_N = decode_experts(result.experts, 20, 2)
    models = [build_router(manifest, expert, data) for expert, data in enumerate(routers)]
    scores_NxE = score(models, corpus.heldout, np.arange(20), 8, batch_sequences=16)
    assert np.array_equal(experts_N, scores_NxE.argmax(axis=1))
    assert "excess_nats" not in result.figures


def test_building_a_router_does_not_change_its_bytes(first, make_run):
    model = build_router(make_run(), 0, first.parameters)
    twin = copy.deepcopy(model)
    state_from_bytes(twin, first.parameters)
    assert state_to_bytes(model) == state_to_bytes(twin) == first.parameters


def test_a_round_that_was_stopped_goes_on_and_ends_with_the_same_bits(
    first, make_run, corpus, tmp_path
):
    asked = []
    with pytest.raises(Stopped):
        router_round(
            make_run(),
            corpus,
            0,
            1,
            None,
            SHARE,
            work_folder=tmp_path,
            should_stop=lambda: bool(asked.append(1)) or len(asked) == 2,
        )
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["step-0000000002"]
    asked.clear()
    again = router_round(
        make_run(),
        corpus,
        0,
        1,
        None,
        SHARE,
        work_folder=tmp_path,
        should_stop=lambda: bool(asked.append(1)),
    )
    scored = 3  # it is asked after each of three batches too
    assert len(asked) == 1 + scored
    assert (again.parameters, again.score_block) == (first.parameters, first.score_block)


def test_a_round_says_its_speed_unless_all_was_trained_before(make_run, corpus, tmp_path):
    manifest = make_run(compute={"checkpoint_share": 1.0})
    asked = []

    def go(**more):
        return router_round(manifest, corpus, 0, 1, None, SHARE, work_folder=tmp_path, **more)

    with pytest.raises(Stopped):
        go(should_stop=lambda: bool(asked.append(1)) or len(asked) >= 3)  # it scores then
    assert "tokens_per_s" not in go().figures
    assert router_round(manifest, corpus, 0, 1, None, SHARE).figures["tokens_per_s"] > 0


def test_a_short_round_writes_nothing(first, make_run, corpus, tmp_path):
    manifest = make_run(compute={"checkpoint_share": 1e-9})
    again = router_round(manifest, corpus, 0, 1, None, SHARE, work_folder=tmp_path)
    assert again.parameters == first.parameters
    assert list(tmp_path.iterdir()) == []


def test_measured_speeds_decide_how_a_slice_is_shared_out(make_run, corpus):
    manifest = make_run(assignment={"capacity": "throughput"})
    routers = [state_to_bytes(build_router(manifest, expert, None)) for expert in (0, 1)]
    start, stop = manifest.shard_range(0)
    for weights, part in (((3.0, 1.0), 0.75), ((), 0.5)):
        result = shard(manifest, corpus, routers, 0, weights=weights)
        expert_N = decode_experts(result.experts, stop - start, 2)
        assert np.mean(expert_N == 0) == part
    equal = shard(make_run(), corpus, routers, 0, weights=(3.0, 1.0))
    assert np.mean(decode_experts(equal.experts, stop - start, 2) == 0) == 0.5
