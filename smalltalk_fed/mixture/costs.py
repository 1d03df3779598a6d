"""What a mixture costs: FLOPs and bytes by formula.

Section 5 of the project's method, after appendix A of arXiv 2410.03529 (A.2 for FLOPs, A.4 for
communication); the tests reproduce the paper's Table 3 and its byte counts. Formulas are for
planning and for standing beside measured figures, never in their place.

Rules: plain Python numbers; FLOPs are multiplications and additions counted separately; bytes
are per node and trained token unless the name says otherwise, and count coordination only,
not the moving of text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostShape:
    """A decoder's measures, as the formulas take them."""

    hidden: int
    layers: int
    feed_forward: int
    vocabulary: int
    feed_forward_matrices: int = 2  # the paper's; 3 for Llama's gated feed-forward


@dataclass(frozen=True)
class MixtureFlops:
    """What training all of a mixture takes, in FLOPs over all nodes."""

    router_training: int
    router_scoring: int  # the E-steps: every router scores every sequence of every chunk
    expert_training: int
    sharding: int  # every router scores every sequence that experts are trained on

    @property
    def overhead(self) -> int:
        """All that a dense model of an expert's size on the same tokens doesn't need."""
        return self.router_training + self.router_scoring + self.sharding

    @property
    def total(self) -> int:
        return self.overhead + self.expert_training


def forward_flops(
    batch: int,
    sequence_tokens: int,
    hidden: int,
    layers: int,
    feed_forward: int,
    vocabulary: int,
    feed_forward_matrices: int = 2,
) -> int:
    """Return the FLOPs of one forward pass over a batch.

    B*S*H + L*(8*B*S*H^2 + 4*B*S^2*H + 2*matrices*B*S*H*Dff) + 2*B*S*H*V + 3*B*S*V: embedding,
    layers (projections, attention, feed-forward), vocabulary projection, softmax and loss.
    """
    tokens = batch * sequence_tokens
    layer = (
        8 * tokens * hidden**2
        + 4 * tokens * sequence_tokens * hidden
        + 2 * feed_forward_matrices * tokens * hidden * feed_forward
    )
    head = 2 * tokens * hidden * vocabulary + 3 * tokens * vocabulary
    return tokens * hidden + layers * layer + head


def train_step_flops(
    batch: int,
    sequence_tokens: int,
    hidden: int,
    layers: int,
    feed_forward: int,
    vocabulary: int,
    feed_forward_matrices: int = 2,
) -> int:
    """Return the FLOPs of one training step: the backward pass costs two forward passes."""
    return 3 * forward_flops(
        batch, sequence_tokens, hidden, layers, feed_forward, vocabulary, feed_forward_matrices
    )


def mixture_training_flops(
    expert: CostShape,
    router: CostShape,
    experts: int,
    *,
    expert_steps: int,
    expert_batch: int,
    router_steps: int,
    router_batch: int,
    sequence_tokens: int,
    prefix_tokens: int,
) -> MixtureFlops:
    """Return what training E routers and E experts takes; steps and batches are one model's.

    Routers are counted at the full length, as the paper does, though their loss ends at the
    prefix. The overhead of its Table 3 is `MixtureFlops.overhead`.
    """
    router_step = 3 * _forward(router, router_batch, sequence_tokens)
    expert_step = 3 * _forward(expert, expert_batch, sequence_tokens)
    score_sequence = routing_overhead_flops(router, experts, prefix_tokens)
    return MixtureFlops(
        router_training=experts * router_steps * router_step,
        router_scoring=experts * router_steps * router_batch * score_sequence,
        expert_training=experts * expert_steps * expert_step,
        sharding=experts * expert_steps * expert_batch * score_sequence,
    )


def routing_overhead_flops(router: CostShape, experts: int, prefix_tokens: int) -> int:
    """Return the FLOPs of choosing an expert for one sequence: all E routers on its prefix."""
    return experts * _forward(router, 1, prefix_tokens)


def inference_overhead(
    expert: CostShape, router: CostShape, experts: int, prefix_tokens: int, sequence_tokens: int
) -> float:
    """Return routing's FLOPs as a share of the expert's own, for one sequence."""
    routing = routing_overhead_flops(router, experts, prefix_tokens)
    return routing / _forward(expert, 1, sequence_tokens)


def ddp_bytes_per_token(parameters: int, batch: int, sequence_tokens: int) -> float:
    """Return what averaging fp32 gradients every step costs: 2*4*W / (B*S).

    `batch` is the sequences that a node trains on in a step.
    """
    return 2 * 4 * parameters / (batch * sequence_tokens)


def diloco_bytes_per_token(
    parameters: int,
    batch: int,
    sequence_tokens: int,
    interval: int = 500,
    bytes_per_weight: int = 4,
) -> float:
    """Return what averaging parameters every `interval` steps costs: 2*c*W / (H*B*S).

    `bytes_per_weight` is 4 for fp32 and 1 for int8 (DiLoCo, arXiv 2311.08105).
    """
    return 2 * bytes_per_weight * parameters / (interval * batch * sequence_tokens)


def scores_bytes_per_token(experts: int, sequence_tokens: int) -> float:
    """Return the cost of sending scores up and getting ids back: 2*E/S + 4/S.

    Two bytes a score (int16 fixed point), four bytes an id.
    """
    return (2 * experts + 4) / sequence_tokens


def broadcast_bytes_per_token(
    experts: int,
    router_parameters: int,
    node_tokens: int,
    sequence_tokens: int,
    bytes_per_weight: int = 2,
) -> float:
    """Return the cost of sending the routers to every holder of text once.

    E*Wr*2/D + 1/S + 4/S: each node gets all routers, scores its own slice, sends one byte a
    sequence and gets four. `node_tokens` (D) is what one node trains on.
    """
    routers = experts * router_parameters * bytes_per_weight / node_tokens
    return routers + (1 + 4) / sequence_tokens


def score_bytes_per_round(sequences_per_router: int, experts: int, bytes_per_score: int = 2) -> int:
    """Return the bytes of one router's scores for one chunk, which all E routers share.

    Two bytes in this project's score blocks, four in the paper's count.
    """
    return sequences_per_router * experts * bytes_per_score


def _forward(shape: CostShape, batch: int, sequence_tokens: int) -> int:
    return forward_flops(
        batch,
        sequence_tokens,
        shape.hidden,
        shape.layers,
        shape.feed_forward,
        shape.vocabulary,
        shape.feed_forward_matrices,
    )
