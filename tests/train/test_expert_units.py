"""Experts, seeds, dense baselines: what they start from, see, and say."""

import json

import numpy as np
import pytest
import torch

from smalltalk_fed.mixture.permutation import training_order
from smalltalk_fed.model.build import build_model, model_config
from smalltalk_fed.model.state import named_weights, state_from_file, state_to_bytes, state_to_file
from smalltalk_fed.train import experts
from smalltalk_fed.train.evaluation import evaluate_expert
from smalltalk_fed.train.expert_plans import base_plan, seed_steps
from smalltalk_fed.train.experts import (
    build_expert,
    dense_baseline,
    train_expert,
    train_seed,
)
from smalltalk_fed.train.metrics import read_metrics
from smalltalk_fed.train.plan import Stopped, TrainResult
from smalltalk_fed.train.scoring import sequence_losses

SEGMENT = np.arange(0, 96, 2)


@pytest.fixture
def watched(monkeypatch):
    """What the loop is called with."""
    calls = []
    real = experts.train

    def watch(model, split, order, **more):
        calls.append((state_to_bytes(model), order, more["plan"]))
        return real(model, split, order, **more)

    monkeypatch.setattr(experts, "train", watch)
    return calls


def test_an_expert_learns_its_segment_in_passes_and_leaves_its_weights(
    make_run, corpus, tmp_path, watched
):
    manifest = make_run()
    path, figures = train_expert(manifest, corpus, 1, SEGMENT[::-1], None, tmp_path)
    start, order, plan = watched[0]
    assert plan.steps == 12
    assert np.array_equal(order, training_order(5, SEGMENT, 96, "expert-order", 1))
    assert sorted(order[:48]) == SEGMENT.tolist()
    assert start == state_to_bytes(build_expert(manifest, "expert", 1))
    assert figures["loss_last"] < figures["loss_first"] - 0.3
    assert figures["loss_at_12"] == pytest.approx(figures["loss_last"])
    model = build_expert(manifest, "expert", 1)
    state_from_file(model, path)
    assert state_to_bytes(model) == path.read_bytes() != start


def test_figures_over_time_are_kept_where_asked(make_run, corpus, tmp_path):
    where = tmp_path / "metrics"
    train_expert(make_run(), corpus, 0, SEGMENT, None, tmp_path / "work", metrics_folder=where)
    lines = read_metrics(where)
    assert lines[-1]["step"] == 12
    assert lines[-1]["loss"] > 0
    train_expert(make_run(), corpus, 1, SEGMENT, None, tmp_path / "work")
    assert read_metrics(tmp_path / "work")[-1]["step"] == 12


def test_an_expert_that_was_stopped_goes_on_and_ends_with_the_same_bits(make_run, corpus, tmp_path):
    manifest, asked = make_run(), []

    def stop_after_five():
        asked.append(1)
        return len(asked) == 5

    whole, _ = train_expert(manifest, corpus, 0, SEGMENT, None, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_expert(
            manifest, corpus, 0, SEGMENT, None, tmp_path / "cut", should_stop=stop_after_five
        )
    seen = []
    path, _ = train_expert(
        manifest,
        corpus,
        0,
        SEGMENT,
        None,
        tmp_path / "cut",
        should_stop=lambda: bool(seen.append(1)),
    )
    assert len(seen) == 7
    assert path.read_bytes() == whole.read_bytes()


def test_seed_and_experts_together_take_the_steps_of_all_experts(make_run):
    for experts_, steps, fraction in ((2, 12, 0.5), (4, 600, 0.8), (3, 2, 0.01), (3, 2, 0.99)):
        manifest = make_run(
            run={"experts": experts_},
            expert={"init": "seed", "steps": steps, "seed_fraction": fraction},
        )
        seed, rest = seed_steps(manifest)
        assert seed + experts_ * rest == experts_ * steps
        assert seed >= 1
        assert rest >= 1


def test_experts_branch_from_the_seed_at_a_lower_peak(make_run, corpus, tmp_path, watched):
    manifest = make_run(expert={"init": "seed", "seed_fraction": 0.75})
    seed, figures = train_seed(manifest, corpus, tmp_path / "seed")
    assert figures["steps"] == 18
    assert len(set(watched[0][1][:96].tolist())) == 96  # a pass over the whole split first
    for parameters in (seed, seed.read_bytes()):
        train_expert(manifest, corpus, 0, SEGMENT, parameters, tmp_path / str(type(parameters)))
        start, order, plan = watched[-1]
        assert start == seed.read_bytes()
        assert (plan.steps, len(order)) == (3, 24)
        assert plan.optimizer.learning_rate == pytest.approx(0.02 * 0.6)
        assert plan.optimizer.warmup_steps == 0


def test_experts_may_start_from_a_checkpoint_on_disk(make_run, corpus, tmp_path, watched):
    shape = make_run().config.expert.model
    folder = tmp_path / "pretrained"
    model = build_model(shape, 40, 64, b"elsewhere")  # a larger vocabulary and context do fit
    state_to_file(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model_config(shape, 40, 64)))
    manifest = make_run(expert={"init": str(folder)})
    path, _ = train_expert(manifest, corpus, 0, SEGMENT, None, tmp_path / "work")
    assert watched[0][0] == state_to_bytes(model)
    figures = evaluate_expert(manifest, corpus, path, np.arange(20))
    assert figures["suffix_nll"] > 0


def test_the_dense_model_sees_as_many_tokens_as_all_experts_in_as_many_steps(
    make_run, corpus, tmp_path, watched
):
    manifest = make_run()
    _, figures = dense_baseline(manifest, corpus, tmp_path)
    _, order, plan = watched[0]
    expert = base_plan(manifest, torch.device("cpu"))
    assert (plan.steps, plan.batch_sequences) == (expert.steps, 2 * expert.batch_sequences)
    assert plan.optimizer == expert.optimizer
    assert len(set(order[:96].tolist())) == 96
    assert figures["tokens"] == 2 * expert.steps * expert.batch_sequences * 16


def test_an_expert_is_judged_by_sums_over_prefix_and_suffix(make_run, corpus):
    manifest = make_run()
    model = build_expert(manifest, "expert", 0)
    ids = np.array([7, 1, 12])
    figures = evaluate_expert(manifest, corpus, state_to_bytes(model), ids)
    prefix_N, suffix_N = sequence_losses(model, corpus.heldout, ids, 8, batch_sequences=16)
    assert figures["prefix_nll"] == pytest.approx(prefix_N.sum())
    assert figures["suffix_nll"] == pytest.approx(suffix_N.sum())
    assert (figures["sequences"], figures["prefix_tokens"], figures["suffix_tokens"]) == (3, 21, 24)


def test_an_expert_without_held_out_sequences_has_sums_of_nothing(make_run, corpus):
    manifest = make_run()
    weights = state_to_bytes(build_expert(manifest, "expert", 0))
    figures = evaluate_expert(manifest, corpus, weights, np.array([], dtype=np.int64))
    assert set(figures.values()) == {0.0}


def test_models_of_different_purposes_start_differently(make_run):
    manifest = make_run()
    kinds = [("expert", 0), ("expert", 1), ("seed-model", 0), ("dense", 0)]
    assert len({state_to_bytes(build_expert(manifest, *kind)) for kind in kinds}) == 4
    assert named_weights(build_expert(manifest, "dense"))["model.norm.weight"].shape == (16,)


def test_a_long_curve_becomes_few_figures_that_end_with_the_last_step():
    curve = tuple((step, 1.0 / step) for step in range(1, 101))
    result = TrainResult(True, 100, 1.0, 0.01, 0.1, curve, 0, 0.0, 0.0)
    figures = experts.curve_figures(result)
    assert len(figures) <= experts.CURVE_POINTS
    assert "loss_at_99" in figures or "loss_at_100" in figures
