"""Gradients of single sequences against one backward pass a sequence, and what clipping bounds."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.naive_clipping import CPU, Rows, naive_clipped_sums, small_model

from smalltalk_fed.errors import UserError
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train import private_sgd
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan
from smalltalk_fed.train.private_sgd import clipped_sums, per_sequence_gradients


def sums_of(model, rows, ids, tokens, clip):
    with per_sequence_gradients(model):
        return clipped_sums(model, rows, np.array(ids, dtype=np.int64), tokens, clip, CPU)


def test_the_embedding_is_the_head():
    model = small_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e6])
@pytest.mark.parametrize("layers", [1, 2])
def test_sums_are_those_of_a_loop_over_sequences(clip, layers):
    model, rows, ids = small_model(layers), Rows(9), [8, 0, 3, 5, 1]
    expected = naive_clipped_sums(model, rows, ids, 8, clip)
    found = sums_of(model, rows, ids, 8, clip)
    for (name, _), total, naive in zip(model.named_parameters(), found, expected, strict=True):
        assert torch.allclose(total, naive, rtol=1e-4, atol=1e-6 * max(1.0, clip)), name


def test_sums_do_not_depend_on_how_many_are_computed_at_once(monkeypatch):
    model, rows = small_model(), Rows(9)
    whole = sums_of(model, rows, range(9), 16, 0.5)
    monkeypatch.setattr(private_sgd, "PART_BYTES", 1)
    monkeypatch.setattr(private_sgd, "PART_ROWS_MIN", 1)  # one at a time
    for total, single in zip(whole, sums_of(model, rows, range(9), 16, 0.5), strict=True):
        assert torch.allclose(total, single, rtol=1e-4, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 10.0), st.integers(0, 7))
def test_one_sequence_moves_the_sum_by_the_clip_at_most(seed, clip, left_out):
    model, rows = small_model(1), Rows(8, seed)
    with_it = sums_of(model, rows, range(8), 8, clip)
    without = sums_of(model, rows, [i for i in range(8) if i != left_out], 8, clip)
    moved = torch.stack([(a - b).norm() for a, b in zip(with_it, without, strict=True)]).norm()
    assert moved <= clip * (1 + 1e-4)


def test_an_empty_batch_sums_to_nothing():
    assert all(bool((total == 0).all()) for total in sums_of(small_model(), Rows(3), [], 8, 1.0))


def attached(model):
    """What is attached to modules and weights: hooks, attributes, gradients."""
    modules = [
        (name, sorted(vars(module)), [len(x) for key, x in vars(module).items() if "hooks" in key])
        for name, module in model.named_modules()
    ]
    weights = [(name, sorted(vars(w)), w.grad is None) for name, w in model.named_parameters()]
    return modules + weights


def test_the_hooks_leave_no_trace(fast_optimizer):
    plan, rows = TrainPlan(fast_optimizer, 3, 4, 8), Rows(12)
    watched, plain = small_model(), small_model()
    before = attached(watched)
    with per_sequence_gradients(watched):
        assert attached(watched) != before
        clipped_sums(watched, rows, np.arange(4), 8, 1.0, CPU)
    assert attached(watched) == before
    with pytest.raises(KeyboardInterrupt), per_sequence_gradients(watched):
        raise KeyboardInterrupt
    assert attached(watched) == before
    for model in (watched, plain):
        train(model, rows, np.arange(12), plan=plan, device=CPU)
    assert state_to_bytes(watched) == state_to_bytes(plain)


def test_without_opacus_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.grad_sample", None)
    with (
        pytest.raises(UserError, match=r"smalltalk-fed\[privacy\]"),
        per_sequence_gradients(small_model()),
    ):
        pass
