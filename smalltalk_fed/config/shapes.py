"""Shapes of models and their parameter counts, without torch.

The coordinator needs a model's size (to bound the blobs that carry it) but never builds
one; `smalltalk_fed.model` builds it from the same shape. Presets carry the paper's widths
and depths (arXiv 2410.03529, section 3.1 and appendix A); its two-matrix feed-forward of
4H becomes Llama's three matrices of 8H/3, rounded up to a multiple of 64.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelShape(BaseModel):
    """A decoder in Llama's shape: RoPE, RMSNorm, gated feed-forward, tied embeddings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(ge=8, le=65536, description="Width of the residual stream.")
    layers: int = Field(ge=1, le=1000, description="Number of decoder layers.")
    heads: int = Field(ge=1, le=1024, description="Attention heads; hidden / heads must be even.")
    feed_forward: int = Field(
        default=0, ge=0, le=1 << 20, description="Width of the gated feed-forward; 0 = 8/3 hidden."
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden ({self.hidden}) must be an even multiple of heads ({self.heads}), "
                "because rotary embeddings turn pairs of dimensions"
            )
        return self

    @property
    def feed_forward_width(self) -> int:
        """Width of each of the three feed-forward matrices."""
        return self.feed_forward or -(-(8 * self.hidden) // (3 * 64)) * 64

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters, the tied embedding counted once."""
        attention = 4 * self.hidden * self.hidden
        feed_forward = 3 * self.hidden * self.feed_forward_width
        norms = 2 * self.hidden
        body = self.layers * (attention + feed_forward + norms)
        return vocabulary * self.hidden + body + self.hidden


PRESETS: dict[str, ModelShape] = {
    "router-4.4m": ModelShape(hidden=96, layers=12, heads=12),
    "335m": ModelShape(hidden=1024, layers=24, heads=16),
    "1.3b": ModelShape(hidden=2048, layers=24, heads=16),
    # For CPUs: the demo's router and expert, and a model that a laptop trains overnight.
    "router-mini": ModelShape(hidden=32, layers=1, heads=2, feed_forward=128),
    "mini": ModelShape(hidden=64, layers=2, heads=4, feed_forward=256),
    "30m": ModelShape(hidden=448, layers=8, heads=7),
}
