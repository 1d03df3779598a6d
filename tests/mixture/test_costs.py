"""Cost formulas against the figures that the paper prints (arXiv 2410.03529)."""

import pytest

from smalltalk_fed.mixture.costs import (
    CostShape,
    broadcast_bytes_per_token,
    ddp_bytes_per_token,
    diloco_bytes_per_token,
    forward_flops,
    inference_overhead,
    mixture_training_flops,
    routing_overhead_flops,
    score_bytes_per_round,
    scores_bytes_per_token,
    train_step_flops,
)

ROUTER = CostShape(hidden=96, layers=12, feed_forward=4 * 96, vocabulary=32_000)
SMALL = CostShape(hidden=1024, layers=24, feed_forward=4 * 1024, vocabulary=32_000)
LARGE = CostShape(hidden=2048, layers=24, feed_forward=4 * 2048, vocabulary=32_000)
STEPS = {SMALL: 256_000, LARGE: 512_000}


def flops_of(expert, experts):
    return mixture_training_flops(
        expert,
        ROUTER,
        experts,
        expert_steps=STEPS[expert],
        expert_batch=128,
        router_steps=128_000,
        router_batch=32,
        sequence_tokens=1024,
        prefix_tokens=256,
    )


@pytest.mark.parametrize(
    ("expert", "experts", "printed"),
    [
        (SMALL, 4, "0.22"),
        (SMALL, 8, "0.75"),
        (SMALL, 16, "2.71"),
        (SMALL, 32, "10.28"),
        (LARGE, 4, "0.36"),
        (LARGE, 16, "4.87"),
        (LARGE, 32, "18.94"),
    ],
)
def test_training_overheads_are_those_of_table_3(expert, experts, printed):
    assert f"{flops_of(expert, experts).overhead / 1e19:.2f}" == printed


@pytest.mark.parametrize(("expert", "percent"), [(SMALL, "4.1"), (LARGE, "1.1")])
def test_training_overhead_in_per_cent_of_training_the_experts(expert, percent):
    flops = flops_of(expert, 32)
    assert f"{100 * flops.overhead / flops.expert_training:.1f}" == percent
    assert flops.total == flops.overhead + flops.expert_training


def test_inference_overhead_of_the_large_mixture_is_what_the_paper_says():
    assert f"{100 * inference_overhead(LARGE, ROUTER, 32, 256, 1024):.1f}" == "2.9"


def test_a_forward_pass_term_by_term():
    embedding, head = 2 * 3 * 4, 2 * 2 * 3 * 4 * 7 + 3 * 2 * 3 * 7
    layer = 8 * 2 * 3 * 4**2 + 4 * 2 * 3**2 * 4 + 4 * 2 * 3 * 4 * 6
    assert forward_flops(2, 3, 4, 5, 6, 7) == embedding + 5 * layer + head
    gated = layer + 2 * 2 * 3 * 4 * 6
    assert forward_flops(2, 3, 4, 5, 6, 7, feed_forward_matrices=3) == embedding + 5 * gated + head
    assert train_step_flops(2, 3, 4, 5, 6, 7) == 3 * forward_flops(2, 3, 4, 5, 6, 7)


def test_most_of_scoring_a_prefix_is_the_vocabulary():
    head = 2 * 256 * 96 * 32_000 + 3 * 256 * 32_000
    assert f"{head / forward_flops(1, 256, 96, 12, 4 * 96, 32_000):.0%}" == "62%"


def test_routing_is_linear_in_experts_and_prefix_alone():
    one = routing_overhead_flops(ROUTER, 1, 256)
    assert one == forward_flops(1, 256, 96, 12, 4 * 96, 32_000)
    assert routing_overhead_flops(ROUTER, 32, 256) == 32 * one


def test_bytes_at_one_billion_parameters_and_32_experts():
    assert f"{ddp_bytes_per_token(1_300_000_000, 128, 1024):,.0f}" == "79,346"
    assert f"{diloco_bytes_per_token(1_300_000_000, 128, 1024):.1f}" == "158.7"
    int8 = diloco_bytes_per_token(1_300_000_000, 128, 1024, interval=500, bytes_per_weight=1)
    assert f"{int8:.1f}" == "39.7"
    assert f"{scores_bytes_per_token(32, 1024):.3f}" == "0.066"
    node_tokens = 512_000 * 128 * 1024
    assert f"{broadcast_bytes_per_token(32, 4_400_000, node_tokens, 1024):.3f}" == "0.009"


def test_the_paper_sends_5_625_megabytes_a_router_and_round():
    sequences = 45_000_000 // 1024
    assert f"{score_bytes_per_round(sequences, 32, bytes_per_score=4) / 1e6:.3f}" == "5.625"
    assert score_bytes_per_round(sequences, 32) == sequences * 32 * 2
