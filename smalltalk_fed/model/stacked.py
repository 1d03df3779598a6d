"""E models of one Llama shape as one: their weights stacked, their tokens shared.

On a GPU a tiny router is all overhead; E of them as one batched product are not. Rules: only
for scoring, so without gradients; sums are fp32 whatever the dtype of the weights. The
result is the same as of the models one by one, up to rounding (tests/model). On a CPU a loop
over the models is faster, and `train.scoring` uses that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from smalltalk_fed.model.loss import GPU_BYTES

# What can be stacked: the parts that `forward.is_lean` asks for, on any device.
_PARTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class StackedLlama:
    """The weights of E models of the same shape, each tensor [E, ...]."""

    def __init__(
        self, models: Sequence[LlamaForCausalLM], device: torch.device, dtype: torch.dtype
    ) -> None:
        config = models[0].config
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        self._dtype = dtype

        def stack(name: str) -> Tensor:
            parts = [model.get_submodule(name).weight.detach() for model in models]
            return torch.stack([part.to(device, dtype) for part in parts])

        self._embedding = stack("model.embed_tokens")
        self._head = stack("lm_head")
        self._last_norm = stack("model.norm")
        self._layers = [
            [stack(f"model.layers.{index}.{part}") for part in _PARTS]
            for index in range(config.num_hidden_layers)
        ]
        self._frequencies = models[0].model.rotary_emb.inv_freq.to(device, torch.float32)

    @torch.inference_mode()
    def scores(self, tokens_BxM: Tensor) -> Tensor:
        """Return each model's log-likelihood of each prefix, fp32[B, E] (equation 4)."""
        hidden = self._hidden(tokens_BxM)[:, :, :-1].flatten(1, 2)
        targets = tokens_BxM[:, 1:].reshape(-1)
        losses = self._losses(hidden, targets)
        return -losses.view(len(losses), len(tokens_BxM), -1).sum(dim=2).t()

    def _hidden(self, tokens: Tensor) -> Tensor:
        """Return the final hidden states [E, B, M, H]."""
        batch, length = tokens.shape
        count, _, width = self._embedding.shape
        cos, sin = self._turns(length)
        x = self._embedding[:, tokens.reshape(-1)]  # [E, B*M, H]
        for norm_1, q, k, v, o, norm_2, gate, up, down in self._layers:
            y = self._normal(x, norm_1)
            shape = (count * batch, length, self.heads, width // self.heads)
            query, key, value = (
                torch.bmm(y, part.transpose(1, 2)).view(shape).transpose(1, 2) for part in (q, k, v)
            )
            mixed = nn.functional.scaled_dot_product_attention(
                _turn(query, cos, sin), _turn(key, cos, sin), value, is_causal=True
            )
            mixed = mixed.transpose(1, 2).reshape(count, batch * length, width)
            x = x + torch.bmm(mixed, o.transpose(1, 2))
            y = self._normal(x, norm_2)
            gated = nn.functional.silu(torch.bmm(y, gate.transpose(1, 2)))
            x = x + torch.bmm(gated * torch.bmm(y, up.transpose(1, 2)), down.transpose(1, 2))
        return self._normal(x, self._last_norm).view(count, batch, length, width)

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return -log p of every target, fp32[E, N], a block of logits at a time."""
        count, tokens, _ = hidden.shape
        rows = max(1, GPU_BYTES // (4 * count * self._head.shape[1]))
        losses = torch.empty(count, tokens, dtype=torch.float32, device=hidden.device)
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            logits = torch.bmm(hidden[:, part], self._head.transpose(1, 2)).float()
            column = targets[part].expand(count, -1)[:, :, None]
            chosen = logits.gather(2, column)[:, :, 0]
            losses[:, part] = torch.logsumexp(logits, dim=2) - chosen
        return losses

    def _normal(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm, computed in fp32 as transformers does."""
        full = x.float()
        normal = full * torch.rsqrt(full.square().mean(dim=-1, keepdim=True) + self.eps)
        return normal.to(self._dtype) * weight[:, None]

    def _turns(self, length: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(length, dtype=torch.float32, device=self._frequencies.device)
        angles = torch.cat((places[:, None] * self._frequencies,) * 2, dim=-1)
        return angles.cos().to(self._dtype), angles.sin().to(self._dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., M, d] in transformers' layout: halves, not neighbours."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
