"""Checkpoints: the same bits after a resume, whole or absent, and never another run's."""

import copy
import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch

from smalltalk_fed.errors import WorldError
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train import checkpoint as checkpoints
from smalltalk_fed.train.budget import Budget, Cost
from smalltalk_fed.train.checkpoint import CheckpointPolicy
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan

CPU = torch.device("cpu")
ORDER = np.random.default_rng(0).integers(0, 96, 46)  # six steps, the last of six sequences


@pytest.fixture
def plan(fast_optimizer):
    return TrainPlan(fast_optimizer, steps=6, batch_sequences=8, tokens=16)


@pytest.fixture
def run(model, corpus, plan, tmp_path):
    """Train a fresh copy of the model, to step `stop_at`, with checkpoints in `tmp_path`."""

    def go(stop_at=None, every_s=1e9, share=math.inf, plan=plan, order=ORDER, start=model):
        twin, steps = copy.deepcopy(start), []

        def should_stop():
            steps.append(1)
            return len(steps) == stop_at

        result = train(
            twin,
            corpus.train,
            order,
            plan=plan,
            device=CPU,
            checkpoint=CheckpointPolicy(tmp_path, every_s, share),
            should_stop=should_stop,
        )
        return twin, result, len(steps)

    return go


@pytest.fixture
def whole(model, corpus, plan):
    twin = copy.deepcopy(model)
    result = train(twin, corpus.train, ORDER, plan=plan, device=CPU)
    return twin, result


@pytest.mark.parametrize("stops", [[1], [5], [2, 1, 1]])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_interrupted(run, whole, stops):
    for stop_at in stops:
        _, result, _ = run(stop_at)
        assert not result.finished
    model, result, steps = run()
    assert steps == 6 - sum(stops)
    assert state_to_bytes(model) == state_to_bytes(whole[0])
    assert (result.curve, result.loss_first, result.loss_mean, result.tokens) == (
        whole[1].curve,
        whole[1].loss_first,
        whole[1].loss_mean,
        whole[1].tokens,
    )


def test_dropout_goes_on_where_it_was(run, corpus, plan):
    from transformers import GPT2Config, GPT2LMHeadModel

    start = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    whole = copy.deepcopy(start)
    train(whole, corpus.train, ORDER, plan=plan, device=CPU)
    run(stop_at=3, start=start)
    resumed, _, _ = run(start=start)
    assert state_to_bytes(resumed) == state_to_bytes(whole)


def test_a_finished_run_is_not_done_again(run, whole):
    run()
    model, result, steps = run()
    assert (steps, result.finished) == (0, True)
    assert state_to_bytes(model) == state_to_bytes(whole[0])


def test_the_last_two_checkpoints_stay(run, tmp_path):
    run(every_s=0.0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert names[-1] == "step-0000000006"


def _newest(folder):
    return max(folder.glob("step-*"))


def _flip_a_bit(folder):
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_bit,
        lambda folder: (folder / "state.safetensors").unlink(),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "state.safetensors").write_bytes(b""),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_said(
    run, whole, tmp_path, caplog, damage
):
    run(stop_at=2)
    run(stop_at=2)
    damage(_newest(tmp_path))
    with caplog.at_level(logging.WARNING):
        model, _, steps = run()
    assert "step-0000000004 is damaged" in caplog.text
    assert steps == 4  # from step 2 on
    assert state_to_bytes(model) == state_to_bytes(whole[0])


def test_a_checkpoint_of_another_plan_order_or_start_is_not_used(run, plan, model, tmp_path):
    from dataclasses import replace

    run(stop_at=3)
    other_start = copy.deepcopy(model)
    with torch.no_grad():
        other_start.model.norm.weight[0] += 1
    for changes in (
        {"plan": replace(plan, accumulate=2)},
        {"order": ORDER[::-1]},
        {"start": other_start},
    ):
        _, _, steps = run(**changes)
        assert steps == 6, changes
        for path in tmp_path.glob("step-*"):  # what that run left
            if json.loads((path / "state.json").read_text())["step"] != 3:
                shutil.rmtree(path)


def test_another_runs_checkpoints_go_when_this_runs_first_one_is_there(run, plan, tmp_path):
    from dataclasses import replace

    run(stop_at=5)
    (tmp_path / ".step-0000000006.part").mkdir()  # a process was killed while it wrote
    run(stop_at=2, plan=replace(plan, accumulate=2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000002"]


def test_a_short_training_is_not_worth_a_last_checkpoint(run, tmp_path):
    _, result, _ = run(every_s=0.0, share=1e-9)
    assert result.finished
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_knows_what_its_checkpoints_cost(run, tmp_path):
    run(stop_at=2)
    meta = json.loads((_newest(tmp_path) / "state.json").read_text())
    assert meta["busy_s"] > 0
    assert meta["wall_s"] > 0
    meta["busy_s"] = 1e9
    (_newest(tmp_path) / "state.json").write_text(json.dumps(meta))
    run(stop_at=3, every_s=0.0, share=1.0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-0000000002", "step-0000000005"]  # none between, one as it stopped


def _full(*_args, **_more):
    raise OSError(28, "No space left on device")


def test_half_a_checkpoint_is_never_seen(run, tmp_path, monkeypatch):
    run(stop_at=2)
    monkeypatch.setattr(checkpoints, "_sync", _full)
    with pytest.raises(WorldError, match=r"can't be written to .*No space left"):
        run(stop_at=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000002"]


def test_a_checkpoint_that_fails_stops_a_training_at_its_next_step(run, plan, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(checkpoints, "_sync", _full)
    # The next one would be due in years: the failure is told before.
    dear = Cost(1e9, 1e9)
    monkeypatch.setattr(Budget, "took", lambda self, cost, now: setattr(self, "expected", dear))
    long = replace(plan, steps=20_000)
    with pytest.raises(WorldError, match="training stops"):
        run(every_s=0.0, share=1.0, plan=long, order=np.zeros(8 * long.steps, dtype=int))


def test_a_finished_training_is_not_lost_with_its_last_checkpoint(run, whole, monkeypatch, caplog):
    monkeypatch.setattr(checkpoints, "_sync", _full)
    model, result, _ = run()
    assert result.finished
    assert state_to_bytes(model) == state_to_bytes(whole[0])
    assert "No space left" in caplog.text
