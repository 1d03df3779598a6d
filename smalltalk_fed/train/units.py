"""What each work unit computes: plain functions of manifest, corpus and inputs.

Nodes call them, whatever carried the order, and so does the oracle. Rules: the same inputs
give the same outputs on the same machine (threads, precision and batch of scoring come from
the manifest; AdamW's moments start anew), ids are used in ascending order whatever order they
came in, and nothing here talks to anybody. A unit that was told to stop raises `Stopped`;
what trains for long leaves a checkpoint and goes on from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.run import Optimizer
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.jobs import capacity
from smalltalk_fed.mixture.assignment import assign, equal_capacity, route
from smalltalk_fed.mixture.idlists import encode_experts
from smalltalk_fed.mixture.permutation import (
    chunk_ids,
    shard_ids,
    training_order,
)
from smalltalk_fed.mixture.scores import encode_scores
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.checkpoint import CHECKPOINTS, CheckpointPolicy
from smalltalk_fed.train.device import train_dtype, use_threads
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import Progress, Stopped, TrainPlan, TrainResult
from smalltalk_fed.train.routers import build_router, prefix_scores
from smalltalk_fed.train.scoring import score_one

OnProgress = Callable[[float, dict[str, float]], None]  # fraction 0..1, figures
ShouldStop = Callable[[], bool]

ROUTER_WARMUP_STEPS = 5  # of every round, where the configuration gives none


@dataclass(frozen=True)
class RouterRoundResult:
    """A router after a round: safetensors, and its scores of the next chunk (none at the end)."""

    parameters: bytes
    score_block: bytes | None
    figures: dict[str, float]


@dataclass(frozen=True)
class ShardResult:
    """The expert of each sequence of a slice, encoded; `prices` [E] are those of its balance."""

    experts: bytes
    figures: dict[str, float]
    prices: np.ndarray


def router_round(
    manifest: RunManifest,
    corpus: TokenCorpus,
    expert: int,
    round_: int,
    parameters: bytes | None,
    share_ids: np.ndarray,
    *,
    work_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> RouterRoundResult:
    """Train router `expert` once over its share of chunk `round_` (1..T), and score the next.

    Algorithm 1's M-step and its part of the E-step. Chunk number `round_` counted from 0 is
    the next round's, since the first round's is number 0. A long round leaves checkpoints in
    `work_folder`, and goes on from them.
    """
    config, device = manifest.config, torch.device(device)
    use_threads(config.compute)
    prefix = config.sequence.prefix
    last_round = round_ == config.router.rounds
    part = 1.0 if last_round else 0.75  # of the unit's time, about
    model, result = train_router(
        manifest,
        corpus,
        expert,
        round_,
        parameters,
        share_ids,
        work_folder=work_folder,
        device=device,
        on_progress=unit_progress(on_progress, 0.0, part),
        should_stop=should_stop,
    )
    block = None
    if not last_round:
        next_ids = chunk_ids(
            config.run.seed, manifest.train_sequences, round_, config.router.chunk_sequences
        )
        scores_N = score_one(
            model,
            corpus.train,
            next_ids,
            prefix,
            batch_sequences=config.compute.score_batch,
            dtype=config.compute.score_dtype,
            device=device,
            on_progress=None
            if on_progress is None
            else lambda done: on_progress(part + (1 - part) * done, {}),
            should_stop=should_stop,
        )
        block = encode_scores(scores_N)
    figures = train_figures(result)
    if not result.tokens_per_s:  # all of it was trained before this process
        del figures["tokens_per_s"]
    return RouterRoundResult(state_to_bytes(model), block, figures)


def train_router(
    manifest: RunManifest,
    corpus: TokenCorpus,
    expert: int,
    round_: int,
    parameters: bytes | None,
    share_ids: np.ndarray,
    *,
    work_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: ShouldStop | None = None,
) -> tuple[LlamaForCausalLM, TrainResult]:
    """Train router `expert` once over its share of round `round_` (1..T): the M-step alone.

    Raises Stopped when `should_stop` says so.
    """
    device = torch.device(device)
    use_threads(manifest.config.compute)
    model = build_router(manifest, expert, parameters)
    seed = manifest.config.run.seed
    order = training_order(seed, np.sort(share_ids), len(share_ids), "router-order", expert, round_)
    result = train(
        model,
        corpus.train,
        order,
        plan=router_plan(manifest, len(share_ids), device),
        device=device,
        checkpoint=checkpoint_policy(manifest, work_folder) if work_folder else None,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    if not result.finished:
        raise Stopped
    return model, result


def shard(
    manifest: RunManifest,
    corpus: TokenCorpus,
    routers: Sequence[bytes | None],
    index: int,
    *,
    weights: Sequence[float] = (),
    heldout: bool = False,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> ShardResult:
    """Divide slice `index` of the training split among the experts, balanced.

    `weights`: the experts' shares where they follow measured speeds, as the unit says.
    `heldout`: route all held-out sequences instead, each to its best expert, unbalanced, as
    prompts are. A router that is None is of an expert that has left: it gets nothing, the others
    even parts.
    """
    config = manifest.config
    use_threads(config.compute)
    split = corpus.heldout if heldout else corpus.train
    if heldout:
        ids = np.arange(len(split))
    else:
        bounds = manifest.shard_range(index)
        ids = shard_ids(config.run.seed, manifest.train_sequences, *bounds)
    there = {e: parameters for e, parameters in enumerate(routers) if parameters is not None}
    scores_NxP = prefix_scores(
        manifest,
        [build_router(manifest, e, parameters) for e, parameters in there.items()],
        split,
        ids,
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    prices_E, figures = np.zeros(len(routers)), {}
    if heldout:
        place_N = route(scores_NxP)
    else:
        if len(there) == len(routers):
            capacity_P = capacity(manifest, len(ids), weights)
        else:
            capacity_P = equal_capacity(len(ids), len(there))
        balanced = assign(scores_NxP, capacity_P, config.assignment.method)
        place_N, prices_E[list(there)] = balanced.expert_N, balanced.prices_E
        figures = {
            "displaced_fraction": float(balanced.stats.displaced_fraction),
            "excess_nats": float(balanced.stats.excess_nats),
        }
    figures["sequences"] = float(len(ids))
    expert_N = np.array(list(there), np.int32)[place_N]
    return ShardResult(encode_experts(expert_N, len(routers)), figures, prices_E)


def checkpoint_policy(manifest: RunManifest, work_folder: Path) -> CheckpointPolicy:
    """Return where a unit's checkpoints are and how often they come."""
    compute = manifest.config.compute
    folder = work_folder / CHECKPOINTS
    return CheckpointPolicy(folder, compute.checkpoint_s, compute.checkpoint_share)


def router_plan(manifest: RunManifest, sequences: int, device: torch.device) -> TrainPlan:
    """Return how a router is trained in one round: once over its share of the chunk."""
    config = manifest.config
    prefix, length = config.sequence.prefix, config.sequence.length
    steps = math.ceil(sequences / config.router.batch_sequences)
    return TrainPlan(
        optimizer=router_optimizer(config.router.optimizer, steps),
        steps=steps,
        batch_sequences=config.router.batch_sequences,
        tokens=prefix if config.router.train_tokens == "prefix" else length,
        dtype=train_dtype(config.compute, device),
        compile_model=False,  # a round is too short to earn the compiler's time back
    )


def router_optimizer(settings: Optimizer, steps: int) -> Optimizer:
    """Return a round's optimizer: a few steps of warm-up, since its moments start at zero.

    As many as configured, else `ROUTER_WARMUP_STEPS`, but no more than a quarter of the round.
    """
    warmup = min(settings.warmup_steps or ROUTER_WARMUP_STEPS, steps // 4)
    return settings.model_copy(update={"warmup_steps": warmup})


def train_figures(result: TrainResult) -> dict[str, float]:
    """Return the figures that a unit reports of its training."""
    return {
        "loss_first": result.loss_first,
        "loss_last": result.loss_last,
        "loss_mean": result.loss_mean,
        "steps": float(result.step),
        "tokens": float(result.tokens),
        "seconds": result.seconds,
        "tokens_per_s": result.tokens_per_s,
    }


def unit_progress(
    on_progress: OnProgress | None, start: float, stop: float
) -> Callable[[Progress], None] | None:
    """Turn a training run's progress into that of a unit of which it is a part."""
    if on_progress is None:
        return None

    def report(progress: Progress) -> None:
        figures = {"loss": progress.loss, "tokens_per_s": progress.tokens_per_s}
        figures["step"] = float(progress.step)
        on_progress(start + (stop - start) * progress.fraction, figures)

    return report
