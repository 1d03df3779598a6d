"""The loop against a plain one written here, its stops, and what it says of itself."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.errors import UserError
from smalltalk_fed.model.state import named_weights, state_to_bytes
from smalltalk_fed.train import loop
from smalltalk_fed.train.checkpoint import CheckpointPolicy
from smalltalk_fed.train.loop import make_optimizer, part_sequences, train
from smalltalk_fed.train.plan import TrainPlan, rate_at

CPU = torch.device("cpu")


def _plan(optimizer, **changes):
    values = {"steps": 5, "batch_sequences": 8, "tokens": 16} | changes
    return TrainPlan(optimizer, **values)


def _order(count=40, seed=0):
    return np.random.default_rng(seed).integers(0, 96, count)


def _naive(model, split, order, plan):
    """Training as one would write it first: all logits, all parameters, one batch at once."""
    decay = [w for w in model.parameters() if w.ndim >= 2]
    norms = [w for w in model.parameters() if w.ndim < 2]
    settings = plan.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )
    losses = []
    for step in range(plan.steps):
        ids = order[step * plan.batch_sequences : (step + 1) * plan.batch_sequences]
        tokens = torch.from_numpy(split.rows(ids, plan.tokens).astype(np.int64))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, plan.steps, settings)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _assert_close(model, twin, rtol=1e-3):
    for (name, a), (_, b) in zip(
        named_weights(model).items(), named_weights(twin).items(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 4},
        {"tokens": 6},
        {"steps": 6, "batch_sequences": 7},  # the last batch has five sequences
        {"steps": 6, "batch_sequences": 7, "accumulate": 3},
    ],
)
def test_the_loop_trains_as_a_plain_one_does(model, corpus, fast_optimizer, changes):
    plan, twin = _plan(fast_optimizer, **changes), copy.deepcopy(model)
    losses = _naive(twin, corpus.train, _order(), plan)
    result = train(model, corpus.train, _order(), plan=plan, device=CPU)
    _assert_close(model, twin)
    assert result.finished
    assert result.step == plan.steps
    assert result.loss_first == pytest.approx(losses[0], rel=1e-4)
    assert result.loss_last == pytest.approx(losses[-1], rel=1e-3)
    assert result.loss_mean == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    assert [loss for _, loss in result.curve] == pytest.approx(losses, rel=1e-3)


def test_parts_that_fit_the_cache_change_nothing(model, corpus, fast_optimizer, monkeypatch):
    plan, twin = _plan(fast_optimizer), copy.deepcopy(model)
    train(twin, corpus.train, _order(), plan=plan, device=CPU)
    monkeypatch.setattr(loop, "CACHED_TOKENS", 48)  # three sequences, and two at last
    assert part_sequences(plan, model) == 3
    train(model, corpus.train, _order(), plan=plan, device=CPU)
    _assert_close(model, twin)


def test_the_same_run_gives_the_same_bits(model, corpus, fast_optimizer):
    twin = copy.deepcopy(model)
    for each in (model, twin):
        torch.rand(3)
        train(each, corpus.train, _order(), plan=_plan(fast_optimizer), device=CPU)
    assert state_to_bytes(model) == state_to_bytes(twin)


def test_dropout_is_fixed_by_the_plans_seed_and_the_global_state_is_left_alone(
    corpus, fast_optimizer
):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    start = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    start.config.model_type = "unknown"  # so that its logits are asked for
    outcomes = []
    for seed in (1, 1, 2):
        twin, before = copy.deepcopy(start), torch.get_rng_state()
        plan = _plan(fast_optimizer, seed=seed)
        train(twin, corpus.train, _order(), plan=plan, device=CPU)
        assert torch.equal(torch.get_rng_state(), before)
        outcomes.append(state_to_bytes(twin))
        torch.rand(1)
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_bf16_autocast_keeps_fp32_weights_and_still_learns(model, corpus, fast_optimizer):
    plan = _plan(fast_optimizer, steps=12, dtype="bfloat16")
    result = train(model, corpus.train, _order(96), plan=plan, device=CPU)
    assert all(w.dtype == torch.float32 for w in model.parameters())
    assert result.loss_last < result.loss_first - 0.3


def test_norms_do_not_decay_and_the_embedding_does(model, fast_optimizer):
    optimizer = make_optimizer(model, fast_optimizer, CPU)
    decay = {id(w): g["weight_decay"] for g in optimizer.param_groups for w in g["params"]}
    for name, weight in model.named_parameters():
        assert decay[id(weight)] == (0.0 if "norm" in name else 0.1), name


def test_should_stop_ends_the_run_after_the_step_and_says_unfinished(model, corpus, fast_optimizer):
    asked = iter([False, False, True])
    plan = _plan(fast_optimizer)
    result = train(
        model, corpus.train, _order(), plan=plan, device=CPU, should_stop=lambda: next(asked)
    )
    assert (result.finished, result.step, len(result.curve)) == (False, 3, 3)


def test_progress_reports_the_end_and_its_loss(model, corpus, fast_optimizer):
    seen = []
    train(
        model,
        corpus.train,
        _order(),
        plan=_plan(fast_optimizer),
        device=CPU,
        on_progress=seen.append,
    )
    assert (seen[-1].step, seen[-1].steps, seen[-1].fraction) == (5, 5, 1.0)
    assert seen[-1].tokens_per_s > 0
    assert 1 < seen[-1].loss < 4


def test_a_diverging_run_says_so_and_leaves_no_checkpoint_of_it(model, corpus, tmp_path):
    plan = _plan(Optimizer(learning_rate=1.0))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("inf"))
    with pytest.raises(UserError, match=r"diverged.*learning_rate"):
        train(
            model,
            corpus.train,
            _order(),
            plan=plan,
            device=CPU,
            checkpoint=CheckpointPolicy(tmp_path, 0.0),
        )
    assert not list(tmp_path.glob("step-*"))


def test_an_order_that_does_not_make_the_steps_is_an_error(model, corpus, fast_optimizer):
    with pytest.raises(ValueError, match="40 sequences are not 6 steps"):
        train(model, corpus.train, _order(), plan=_plan(fast_optimizer, steps=6), device=CPU)


def test_ctrl_c_ends_the_step_writes_a_checkpoint_and_then_raises(
    model, corpus, fast_optimizer, tmp_path
):
    steps = []

    def interrupt_in_step_two():
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    start, plan = copy.deepcopy(model), _plan(fast_optimizer)
    policy = CheckpointPolicy(tmp_path, 1e9)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(
            model,
            corpus.train,
            _order(),
            plan=plan,
            device=CPU,
            checkpoint=policy,
            should_stop=interrupt_in_step_two,
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in tmp_path.glob("step-*")] == [f"step-{len(steps):010d}"]

    whole = copy.deepcopy(start)
    train(whole, corpus.train, _order(), plan=plan, device=CPU)
    resumed = train(start, corpus.train, _order(), plan=plan, device=CPU, checkpoint=policy)
    assert resumed.finished
    assert state_to_bytes(start) == state_to_bytes(whole)
