"""Training under noise: what it computes, what it tells, and that noise is used once."""

import shutil

import numpy as np
import pytest
import torch
from support.naive_clipping import CPU, Rows, naive_clipped_sums, small_model

from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.errors import UserError
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.checkpoint import CheckpointPolicy
from smalltalk_fed.train.loop import make_optimizer
from smalltalk_fed.train.private_sgd import PrivatePlan, train_privately
from smalltalk_fed.train.secret_noise import SecretNoise

KEY = bytes(32)
KEYS = [bytes([n] * 32) for n in range(20)]
SETTINGS = Optimizer(learning_rate=0.02, schedule="constant", warmup_steps=2)


def plan(steps=4, batch=6, noise=1.0, clip=0.5, optimizer=SETTINGS):
    return PrivatePlan(optimizer, steps, batch, 8, noise=noise, clip=clip)


def trained(sequences=20, key=None, **options):
    model = small_model(1)
    how = {name: options.pop(name) for name in ("checkpoint", "should_stop") if name in options}
    noise = SecretNoise(key) if key else None
    result = train_privately(
        model, Rows(sequences), sequences, plan=plan(**options), device=CPU, noise=noise, **how
    )
    return model, result


def test_it_is_abadis_algorithm_with_adamw():
    model, _ = trained(key=KEY)
    naive, rows, noise = small_model(1), Rows(20), SecretNoise(KEY)
    optimizer = make_optimizer(naive, SETTINGS, CPU)
    for step in range(4):
        ids = np.flatnonzero(noise.uniform(20) <= 6 / 20)
        sums = naive_clipped_sums(naive, rows, ids, 8, 0.5)
        for weight, total in zip(naive.parameters(), sums, strict=True):
            weight.grad = ((total + noise.normal(total.shape) * 0.5) / 6).float()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = plan().rate(step)
        optimizer.step()
    for (name, weight), other in zip(model.named_parameters(), naive.parameters(), strict=True):
        assert torch.allclose(weight, other, rtol=1e-3, atol=1e-5), name


def test_the_noise_is_the_multiplier_times_the_clip_over_the_expected_batch():
    quiet = Optimizer(learning_rate=1e-9, beta1=0.0, weight_decay=0.0)
    model = small_model(1)
    noise = SecretNoise(KEY)
    taken = []
    step = torch.optim.AdamW.step

    def watch(self, *args):
        grads = [w.grad for group in self.param_groups for w in group["params"]]
        taken.append(torch.cat([grad.flatten() for grad in grads]))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watch)
        train_privately(
            model,
            Rows(20),
            20,
            plan=plan(steps=20, noise=3.0, clip=1e-4, optimizer=quiet),
            device=CPU,
            noise=noise,
        )
    assert torch.stack(taken).std() == pytest.approx(3.0 * 1e-4 / 6, rel=0.02)


def test_two_trainings_of_the_same_unit_differ_and_torchs_seed_does_not_matter():
    torch.manual_seed(3)
    first = state_to_bytes(trained()[0])
    torch.manual_seed(3)
    assert state_to_bytes(trained()[0]) != first
    assert state_to_bytes(trained(key=KEY)[0]) == state_to_bytes(trained(key=KEY)[0])


def test_without_noise_and_clip_it_learns():
    rows = Rows(20)
    rows.tokens_NxS[:] = np.arange(16)
    model = small_model(1)
    settings = Optimizer(learning_rate=0.02, schedule="constant")
    train_privately(
        model,
        rows,
        20,
        plan=plan(60, 10, noise=1e-6, clip=10.0, optimizer=settings),
        device=CPU,
        noise=SecretNoise(KEY),
    )
    assert model(torch.arange(16)[None]).logits[0, :7].argmax(dim=1).tolist() == [*range(1, 8)]


def test_most_batches_may_be_empty_and_such_a_step_is_noise_alone():
    """A step that is left out would tell that nothing was drawn."""
    draws = SecretNoise(KEY)
    sizes = [len(draws.chosen(60, 1 / 60)) for _ in range(8)]
    assert 0 in sizes
    _, result = trained(steps=8, batch=1, sequences=60, key=KEY)
    assert result.finished
    nothing = next(key for key in KEYS if not len(SecretNoise(key).chosen(60, 1 / 60)))
    model, result = trained(steps=1, batch=1, sequences=60, key=nothing)
    assert (result.finished, result.step) == (True, 1)
    assert state_to_bytes(model) != state_to_bytes(small_model(1))


def test_nothing_is_told_that_is_a_function_of_the_text():
    told = []
    model = small_model(1)
    result = train_privately(
        model,
        Rows(20),
        20,
        plan=plan(),
        device=CPU,
        on_progress=lambda part, figures: told.append((part, set(figures))),
    )
    assert set(result.figures) == {"steps", "tokens", "seconds", "tokens_per_s"}
    assert result.tokens == 4 * 6 * 8  # as expected, not as drawn
    assert told == [(1.0, {"step", "tokens_per_s"})]


def stopping_after(steps):
    asked = []
    return lambda: bool(asked.append(1)) or len(asked) == steps


def test_who_goes_on_from_a_checkpoint_draws_new_noise(tmp_path):
    def go_on(folder, **options):
        policy = CheckpointPolicy(folder, every_s=3600.0)
        return trained(steps=6, checkpoint=policy, **options)

    stopped, result = go_on(tmp_path / "a", key=KEY, should_stop=stopping_after(3))
    assert (result.finished, result.step) == (False, 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, result = go_on(tmp_path / "a")
    assert (result.finished, result.step) == (True, 6)
    second, _ = go_on(tmp_path / "b")
    assert state_to_bytes(first) != state_to_bytes(second)
    # Both went on from the stopped weights: three more steps are not as far as six.
    other, _ = trained(steps=6)
    near = torch.dist(first.lm_head.weight, stopped.lm_head.weight)
    assert near < torch.dist(other.lm_head.weight, stopped.lm_head.weight)


def test_a_checkpoint_holds_no_state_of_the_noise(tmp_path):
    from safetensors.torch import load_file

    policy = CheckpointPolicy(tmp_path, every_s=3600.0)
    trained(steps=6, checkpoint=policy, should_stop=stopping_after(3), key=b"k" * 32)
    (file,) = tmp_path.glob("*/state.safetensors")
    assert b"k" * 32 not in file.read_bytes()
    kinds = {name.partition("/")[0] for name in load_file(file)}
    assert kinds == {"losses", "weight", "exp_avg", "exp_avg_sq", "step", "random"}
    assert not load_file(file)["losses"].any()


def test_weights_that_are_no_numbers_end_it_with_a_sentence():
    with pytest.raises(UserError, match="diverged"):
        trained(optimizer=Optimizer(learning_rate=1.0), clip=1e38, noise=1e30)
