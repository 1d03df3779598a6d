"""Hidden states of a causal language model, the fast way where there is one.

`make_forward(model, device)` returns a function from tokens to the final hidden states and
the matrix that turns them into logits. For Llama-shaped models in fp32 on a CPU it computes
what transformers' modules compute, over the same parameters, with fewer passes over memory:

- the norm's weights go into the matrices that follow them; query, key and value are one
  product, gate and up another;
- rotary embeddings are one complex multiplication, since the rows of the query and key
  matrices are put in such an order that the two halves of a pair stand side by side (the
  scores don't change when both are permuted alike);
- attention works on blocks of queries and skips what lies in the future.

The result differs from transformers' in the last bits only (tests/model). Everything else,
GPUs included, runs the model's own forward: there torch.compile does this work.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import LlamaForCausalLM

QUERY_BLOCK = 64
# Attention keeps its probabilities (half of S x S a head); longer sequences go to torch's.
PLAIN_ATTENTION_TOKENS = 512

# Models whose logits are the hidden states times the output matrix, with nothing added.
PLAIN_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo", "olmo2", "phi3")


class Forward(Protocol):
    """Tokens int64[B, S] to hidden states [B, S, H]; the head is [V, H]."""

    def __call__(self, tokens_BxS: Tensor) -> Tensor: ...

    @property
    def head(self) -> Tensor: ...


def make_forward(
    model: nn.Module, *, compile_model: bool = False, lean: bool = True
) -> Forward | None:
    """Return how to compute `model`'s hidden states; None where only its logits are known.

    `compile_model` lets torch.compile at the model's own forward (on a GPU). `lean` = False
    keeps to that forward also where `LeanLlama` could stand for it.
    """
    if lean and is_lean(model):
        return LeanLlama(model)
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind not in PLAIN_HEADS or getattr(_output(model), "bias", None) is not None:
        return None
    return ModuleForward(model, compile_model)


def is_lean(model: nn.Module) -> bool:
    """Whether `LeanLlama` can stand for this model: a plain Llama, fp32, on a CPU."""
    return has_llama_shape(model) and all(
        w.device.type == "cpu" and w.dtype == torch.float32 for w in model.parameters()
    )


def has_llama_shape(model: nn.Module) -> bool:
    """Whether this is a Llama as `build` makes them: no biases, plain rotary embedding."""
    if not isinstance(model, LlamaForCausalLM):
        return False
    config = model.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return (
        config.num_key_value_heads == config.num_attention_heads
        and config.head_dim * config.num_attention_heads == config.hidden_size
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.mlp_bias
        and not config.attention_dropout
        and rope.get("rope_type", "default") == "default"
    )


def _output(model: Any) -> nn.Module:
    """Return the module that turns hidden states into logits."""
    module: nn.Module = model.get_output_embeddings()
    return module


class ModuleForward:
    """The model's own forward, without a cache and without logits."""

    def __init__(self, model: nn.Module, compile_model: bool = False) -> None:
        self._model = model
        body: Any = model.base_model
        self._body = torch.compile(body, dynamic=False) if compile_model else body

    @property
    def head(self) -> Tensor:
        """The output matrix."""
        weight = _output(self._model).weight
        assert isinstance(weight, Tensor)
        return weight

    def __call__(self, tokens_BxS: Tensor) -> Tensor:
        """Return the final hidden states [B, S, H]."""
        hidden: Tensor = self._body(input_ids=tokens_BxS, use_cache=False)[0]
        return hidden


class LeanLlama:
    """transformers' Llama, computed with fewer passes over memory; the weights stay there."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        self.heads, self.width = (
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
        )
        self.eps = config.rms_norm_eps
        self._embedding = model.model.embed_tokens.weight
        self._head = model.lm_head.weight
        self._last_norm = model.model.norm.weight
        self._layers = [
            (
                layer.input_layernorm.weight,
                layer.self_attn.q_proj.weight,
                layer.self_attn.k_proj.weight,
                layer.self_attn.v_proj.weight,
                layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight,
                layer.mlp.gate_proj.weight,
                layer.mlp.up_proj.weight,
                layer.mlp.down_proj.weight,
            )
            for layer in model.model.layers
        ]
        self._frequencies = model.model.rotary_emb.inv_freq
        self._turns = torch.empty(0, dtype=torch.complex64)
        self._frozen: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    @property
    def head(self) -> Tensor:
        """The output matrix."""
        return self._head

    def freeze(self) -> Self:
        """Join the matrices once; for weights that don't change any more. Without gradients."""
        with torch.no_grad():
            self._frozen = self._joined()
        return self

    def __call__(self, tokens_BxS: Tensor) -> Tensor:
        """Return the final hidden states [B, S, H]."""
        batch, length = tokens_BxS.shape
        turns = self._turns_for(length)
        x = nn.functional.embedding(tokens_BxS, self._embedding).view(batch * length, -1)
        for qkv, o, gate_up, down in self._frozen or self._joined():
            mixed = _attention(_Normalise.apply(x, self.eps) @ qkv, turns, batch, self.heads)
            x = torch.addmm(x, mixed, o)
            gated = _Gate.apply(_Normalise.apply(x, self.eps) @ gate_up)
            x = torch.addmm(x, gated, down)
        hidden = _Normalise.apply(x, self.eps) * self._last_norm
        return hidden.view(batch, length, -1)

    def _joined(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return each layer's four matrices, ready to be multiplied from the right."""
        return [
            (
                (torch.cat((self._paired(q), self._paired(k), v)) * norm_1).t(),
                o.t(),
                (torch.cat((gate, up)) * norm_2).t(),
                down.t(),
            )
            for norm_1, q, k, v, o, norm_2, gate, up, down in self._layers
        ]

    def _paired(self, weight: Tensor) -> Tensor:
        """Put row j of a head's first half beside row j of its second half."""
        return weight.view(self.heads, 2, self.width // 2, -1).transpose(1, 2).reshape(weight.shape)

    def _turns_for(self, length: int) -> Tensor:
        """Return complex[S, 2, 1, d/2]: the turn of each position, for queries with the scale."""
        if len(self._turns) != length:
            angles = torch.arange(length, dtype=torch.float32)[:, None] * self._frequencies.float()
            turns = torch.polar(torch.ones_like(angles), angles)
            self._turns = torch.stack((turns * self.width**-0.5, turns), dim=1)[:, :, None]
        return self._turns


class _Normalise(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) by rows: RMSNorm without its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        inverse = (x * x).mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        normal = x * inverse
        ctx.save_for_backward(normal, inverse)
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        normal, inverse = ctx.saved_tensors
        along = (grad * normal).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, normal, along, value=-1).mul_(inverse), None


class _Gate(torch.autograd.Function):
    """silu(gate) * up, of [N, 2F] into [N, F]."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=1)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, dim=1)
        torch.mul(nn.functional.silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward(grad * up, gate, grad_input=grad_gate)
        return result


def _attention(qkv: Tensor, turns: Tensor, batch: int, heads: int) -> Tensor:
    """Causal attention of [B*S, 3H], rotary embedding included, into [B*S, H]."""
    length = len(turns)
    if length <= PLAIN_ATTENTION_TOKENS:
        result: Tensor = _Attention.apply(qkv, turns, batch, heads)
        return result
    q, k, v = _Turn.apply(qkv, turns, batch, heads)
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    return mixed.transpose(1, 2).reshape(batch * length, -1)


def _turned(qkv: Tensor, turns: Tensor, batch: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split [B*S, 3H] into query, key, value, each [B, h, S, d], the first two turned."""
    length, width = len(turns), qkv.shape[1] // (3 * heads)
    parts = qkv.view(batch, length, 3, heads, width)
    both = torch.empty(2, batch, heads, length, width // 2, dtype=torch.complex64)
    pairs = torch.view_as_complex(parts[:, :, :2].unflatten(-1, (width // 2, 2)))
    torch.mul(pairs, turns, out=both.permute(1, 3, 0, 2, 4))
    query, key = torch.view_as_real(both).flatten(-2)
    return query, key, parts[:, :, 2].transpose(1, 2).contiguous()


def _turned_back(grad_qk: Tensor, grad_v: Tensor, turns: Tensor) -> Tensor:
    """The gradient of `_turned`: [2, B, h, S, d] and [B, h, S, d] into [B*S, 3H]."""
    _, batch, heads, length, width = grad_qk.shape
    grad = torch.empty(batch, length, 3, heads, width)
    pairs = torch.view_as_complex(grad_qk.unflatten(-1, (width // 2, 2))).permute(1, 3, 0, 2, 4)
    out = torch.view_as_complex(grad[:, :, :2].unflatten(-1, (width // 2, 2)))
    torch.mul(pairs, turns.conj(), out=out)
    grad[:, :, 2] = grad_v.transpose(1, 2)
    return grad.view(batch * length, -1)


class _Turn(torch.autograd.Function):
    """`_turned` with its gradient, before torch's own attention."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, turns: Tensor, batch: int, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.turns = turns
        return _turned(qkv, turns, batch, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _turned_back(torch.stack(grads[:2]), grads[2], ctx.turns), None, None, None


class _Attention(torch.autograd.Function):
    """Rotary embedding and causal attention by blocks of queries, probabilities kept."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turns: Tensor, batch: int, heads: int) -> Tensor:
        length = len(turns)
        query, key, value = (
            part.view(batch * heads, length, -1) for part in _turned(qkv, turns, batch, heads)
        )
        mixed = torch.empty_like(value)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf")).triu_(1)
        kept = []
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            scores = torch.bmm(query[:, start:end], key[:, :end].transpose(1, 2))
            scores[:, :, start:] += future[: end - start, : end - start]
            weights = torch.softmax(scores, dim=-1)
            # Not `out=`: a slice is not contiguous, and bmm would go matrix by matrix.
            mixed[:, start:end] = torch.bmm(weights, value[:, :end])
            kept.append(weights)
        ctx.save_for_backward(query, key, value, turns, *kept)
        ctx.heads = heads
        return mixed.view(batch, heads, length, -1).transpose(1, 2).reshape(batch * length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        query, key, value, turns, *kept = ctx.saved_tensors
        count, length, width = query.shape
        batch = count // ctx.heads
        grad = grad.view(batch, length, ctx.heads, width).transpose(1, 2).reshape(query.shape)
        grad_qk = torch.zeros(2, count, length, width)
        grad_query, grad_key = grad_qk
        grad_value = torch.zeros_like(value)
        for block, weights in enumerate(kept):
            start = block * QUERY_BLOCK
            end = start + weights.shape[1]
            here = grad[:, start:end]
            grad_value[:, :end] += torch.bmm(weights.transpose(1, 2), here)
            grad_weights = torch.bmm(here, value[:, :end].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, torch.float32)
            grad_query[:, start:end] = torch.bmm(grad_scores, key[:, :end])
            grad_key[:, :end] += torch.bmm(grad_scores.transpose(1, 2), query[:, start:end])
        shape = (batch, ctx.heads, length, width)
        return (
            _turned_back(grad_qk.view(2, *shape), grad_value.view(shape), turns),
            None,
            None,
            None,
        )
