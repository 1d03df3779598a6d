"""The fast forwards against transformers' own: hidden states and every gradient."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from smalltalk_fed.config.shapes import PRESETS, ModelShape
from smalltalk_fed.model.build import build_model
from smalltalk_fed.model.forward import (
    PLAIN_ATTENTION_TOKENS,
    LeanLlama,
    ModuleForward,
    is_lean,
    make_forward,
)
from smalltalk_fed.model.stacked import StackedLlama

SHAPE = ModelShape(hidden=24, layers=3, heads=3, feed_forward=40)


def _model(key=b"key", shape=SHAPE):
    model = build_model(shape, 50, 1024, key)
    with torch.no_grad():  # larger weights, so that every part matters; norms that are not one
        for index, weight in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            if weight.ndim < 2:
                weight += 1
    return model


def _tokens(batch, length):
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200, PLAIN_ATTENTION_TOKENS + 8])
def test_lean_llama_gives_transformers_hidden_states_and_gradients(length):
    model, tokens = _model(), _tokens(2, length)
    theirs = model.model(tokens, use_cache=False).last_hidden_state
    ours = LeanLlama(model)(tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    slope = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(4))
    names, weights = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(theirs, weights, slope)
    # Of one token neither query nor key matters: their gradients are rounding and nothing else.
    rounding = 1e-6 * max(float(b.abs().max()) for b in expected)
    for name, a, b in zip(names, torch.autograd.grad(ours, weights, slope), expected, strict=True):
        near = 1e-4 * float(b.abs().max()) + rounding
        torch.testing.assert_close(a, b, rtol=1e-3, atol=near, msg=lambda m, n=name: n + m)


def test_a_frozen_forward_gives_the_same_bits_and_a_trained_one_sees_new_weights():
    model, tokens = _model(), _tokens(2, 40)
    forward, frozen = LeanLlama(model), LeanLlama(model).freeze()
    with torch.no_grad():
        before = forward(tokens)
        assert torch.equal(frozen(tokens), before)
        model.model.layers[1].mlp.up_proj.weight += 0.1
        assert not torch.equal(forward(tokens), before)
        assert torch.equal(frozen(tokens), before)


def test_lengths_may_change_between_calls():
    forward = LeanLlama(_model())
    with torch.no_grad():
        long = forward(_tokens(2, 64))
        torch.testing.assert_close(forward(_tokens(2, 64)[:, :10]), long[:, :10])
        torch.testing.assert_close(forward(_tokens(2, 64)), long)


def test_only_what_is_a_plain_llama_in_fp32_goes_the_lean_way():
    assert is_lean(_model())
    assert not is_lean(_model().double())
    for change in (
        {"attention_bias": True},
        {"num_key_value_heads": 1},
        {"hidden_act": "relu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ):
        config = LlamaConfig(
            **{
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 50,
            }
            | change
        )
        assert not is_lean(LlamaForCausalLM(config)), change


def test_other_models_go_through_their_own_forward_or_their_logits():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)).eval()
    forward = make_forward(model)
    assert isinstance(forward, ModuleForward)
    tokens = _tokens(2, 9)
    torch.testing.assert_close(forward(tokens) @ forward.head.t(), model(tokens).logits)
    model.config.model_type = "something-else"
    assert make_forward(model) is None


@pytest.mark.parametrize("shape", [SHAPE, PRESETS["router-mini"]])
def test_stacked_models_score_as_each_does_alone(shape):
    models = [_model(bytes([e]), shape) for e in range(3)]
    tokens = _tokens(5, 12)
    scores = StackedLlama(models, torch.device("cpu"), torch.float32).scores(tokens)
    with torch.no_grad():
        for expert, model in enumerate(models):
            chances = model(tokens).logits[:, :-1].log_softmax(-1)
            alone = chances.gather(2, tokens[:, 1:, None]).sum(dim=(1, 2))
            torch.testing.assert_close(scores[:, expert], alone, rtol=1e-4, atol=1e-3)
