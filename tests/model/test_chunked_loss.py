"""The loss in blocks against torch's own, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from smalltalk_fed.model import loss as loss_module
from smalltalk_fed.model.loss import mean_loss, rows_at_once, token_losses


def _inputs(tokens, width, vocabulary, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens * 1000 + width)
    hidden = (torch.randn(tokens, width, generator=generator) * scale).to(dtype)
    head = torch.randn(vocabulary, width, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), head.requires_grad_(), targets


def _naive(hidden, head, targets):
    return torch.nn.functional.cross_entropy(hidden @ head.t(), targets, reduction="none")


def _gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


@given(st.integers(1, 70), st.integers(1, 9), st.integers(2, 50), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_blocks_of_any_size_give_the_naive_losses_and_gradients(tokens, width, vocabulary, rows):
    hidden, head, targets = _inputs(tokens, width, vocabulary)
    weights = torch.linspace(-1, 2, tokens)
    naive = _naive(hidden, head, targets)
    ours = token_losses(hidden, head, targets, rows)
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    expected = _gradients((naive * weights).sum(), hidden, head)
    for a, b in zip(_gradients((ours * weights).sum(), hidden, head), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    naive_mean = _naive(hidden, head, targets).mean()
    mean = mean_loss(hidden, head, targets, rows)
    torch.testing.assert_close(mean, naive_mean, rtol=1e-4, atol=1e-5)
    expected = _gradients(naive_mean * 3, hidden, head)
    for a, b in zip(_gradients(mean * 3, hidden, head), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_targets_probability():
    hidden, head, targets = _inputs(8, 4, 30, scale=500.0)
    losses = token_losses(hidden, head, targets)
    assert torch.isfinite(losses).all()
    torch.testing.assert_close(losses, _naive(hidden, head, targets), rtol=1e-4, atol=1e-3)
    assert torch.isfinite(mean_loss(hidden, head, targets))


@pytest.mark.parametrize("function", [token_losses, mean_loss])
def test_bf16_hidden_states_meet_an_fp32_head_and_losses_are_fp32(function):
    hidden, head, targets = _inputs(40, 16, 64)
    exact = function(hidden, head, targets)
    rough = function(hidden.bfloat16(), head, targets, 16)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.2)
    (gradient,) = _gradients(rough.sum(), head)
    assert gradient.dtype == torch.float32


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return result


@pytest.mark.parametrize("function", [token_losses, mean_loss])
def test_logits_of_a_large_vocabulary_never_stand_in_memory_at_once(function):
    hidden, head, targets = _inputs(1500, 2, 5000)
    with _Largest() as largest:
        _gradients(function(hidden, head, targets).sum(), hidden, head)
    assert largest.numbers <= 512 * 5000


def test_the_form_that_is_compiled_gives_the_same(monkeypatch):
    monkeypatch.setattr(loss_module, "_compiled_slope", lambda: loss_module._slope)
    hidden, head, targets = _inputs(50, 8, 40)
    ours = mean_loss(hidden, head, targets, 20, compiled=True)
    eager = mean_loss(hidden, head, targets, 20)
    torch.testing.assert_close(ours, eager)
    expected = _gradients(eager, hidden, head)
    for a, b in zip(_gradients(ours, hidden, head), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_blocks_have_a_bound_in_bytes_whatever_the_vocabulary():
    for vocabulary in (2, 1024, 32_000, 250_000, 10_000_000):
        cpu, gpu = (rows_at_once(vocabulary, torch.device(kind)) for kind in ("cpu", "cuda"))
        assert cpu >= 1
        assert gpu >= 1
        assert cpu == 1 or 4 * vocabulary * cpu <= 1 << 27
        assert gpu == 1 or 4 * vocabulary * gpu <= 1 << 29
