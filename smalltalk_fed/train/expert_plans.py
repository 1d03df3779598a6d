"""How many steps an expert takes, at which rates, and how one that is taken over goes on.

With equal shares every expert takes the configured steps. With others each takes steps in
proportion to its segment: every sequence is seen as often as with equal shares, the tokens in
all stay the same, and experts whose shares follow their nodes' speed end at about the same
time. Whoever takes an expert over at step s has its weights but not AdamW's moments: the
schedule and the data's order go on at s, and the rate rises to the schedule's over one
hundredth of the steps that are left (at least 5, at most 100).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.train.device import may_compile, train_dtype
from smalltalk_fed.train.plan import TrainPlan

RAMP_STEPS_LEAST, RAMP_STEPS_MOST = 5, 100
RAMP_PART = 100  # of the steps that are left, one in so many


def seed_steps(manifest: RunManifest) -> tuple[int, int]:
    """Return the seed's steps and what is left for each expert; both at the experts' batch.

    E experts' worth of `seed_fraction` of the steps, so that seed and experts together see
    exactly E * steps batches. Both are at least 1.
    """
    section = manifest.config.expert
    taken = min(max(1, round(section.seed_fraction * section.steps)), section.steps - 1)
    return taken * manifest.experts, section.steps - taken


def base_plan(manifest: RunManifest, device: torch.device) -> TrainPlan:
    """Return how a model of the experts' size is trained without a seed, for a whole share."""
    config = manifest.config
    return TrainPlan(
        optimizer=config.expert.optimizer,
        steps=config.expert.steps,
        batch_sequences=config.expert.batch_sequences,
        tokens=config.sequence.length,
        accumulate=config.expert.accumulate,
        dtype=train_dtype(config.compute, device),
        compile_model=may_compile(config.compute, device),
    )


def expert_plan(
    manifest: RunManifest,
    device: torch.device,
    segment_sequences: int,
    *,
    seeded: bool = False,
    start_step: int = 0,
) -> TrainPlan:
    """Return how the expert of so large a segment is trained, from `start_step` on."""
    plan = base_plan(manifest, device)
    if seeded:
        plan = _after_seed(manifest, plan)
    if manifest.config.assignment.capacity != "equal":
        plan = for_share(plan, segment_sequences * manifest.experts / manifest.train_sequences)
    if start_step:
        left = plan.steps - start_step
        ramp = min(RAMP_STEPS_MOST, max(left // RAMP_PART, min(RAMP_STEPS_LEAST, left // 4)))
        plan = replace(plan, start_step=start_step, ramp_steps=ramp)
    return plan


def _after_seed(manifest: RunManifest, plan: TrainPlan) -> TrainPlan:
    """Fewer steps, a lower peak, and a warm-up of at most a quarter of what is left."""
    _, steps = seed_steps(manifest)
    old = plan.optimizer
    optimizer = old.model_copy(
        update={
            "learning_rate": old.learning_rate * manifest.config.expert.seed_rate_factor,
            "warmup_steps": min(old.warmup_steps, steps // 4),
        }
    )
    return replace(plan, steps=steps, optimizer=optimizer)


def for_share(plan: TrainPlan, factor: float) -> TrainPlan:
    """Steps in proportion to the share, which is `factor` of an equal one; warm-up likewise."""
    warmup = round(plan.optimizer.warmup_steps * min(1.0, factor))
    optimizer = plan.optimizer.model_copy(update={"warmup_steps": warmup})
    return replace(plan, steps=max(1, round(plan.steps * factor)), optimizer=optimizer)
