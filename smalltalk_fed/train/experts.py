"""The units that train and judge large models: seed, experts, dense baseline, evaluation.

Experts start fresh, from a checkpoint that every node can read, or from one seed model. With
a seed the tokens in all stay what they were: it takes `seed_fraction` of every expert's
steps, E times as many steps of its own at the same batch, and the experts do the rest at
`seed_rate_factor` of the peak rate (method.md, section 4, "When it pays"). The dense baseline
has the experts' shape and number of steps and a batch E times larger, as in the paper. The
rules of `units` hold here too.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.mixture.permutation import derive_key, training_order
from smalltalk_fed.model.build import build_model, load_model
from smalltalk_fed.model.state import state_from_bytes, state_from_file, state_to_file
from smalltalk_fed.train.checkpoint import CheckpointPolicy
from smalltalk_fed.train.device import may_compile, train_dtype, use_threads
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.metrics import MetricsWriter
from smalltalk_fed.train.parallel import ONE_PROCESS, World
from smalltalk_fed.train.plan import Progress, Stopped, TrainPlan, TrainResult
from smalltalk_fed.train.scoring import sequence_losses
from smalltalk_fed.train.units import OnProgress, ShouldStop, train_figures, unit_progress

CURVE_POINTS = 40
WEIGHTS_FILE = "model.safetensors"


def seed_steps(manifest: RunManifest) -> tuple[int, int]:
    """Return the seed's steps and what is left for each expert; both at the experts' batch.

    E experts' worth of `seed_fraction` of the steps, so that seed and experts together see
    exactly E * steps batches. Both are at least 1.
    """
    section = manifest.config.expert
    taken = min(max(1, round(section.seed_fraction * section.steps)), section.steps - 1)
    return taken * manifest.experts, section.steps - taken


def build_expert(
    manifest: RunManifest, purpose: str, expert: int = 0, pretrained: bool = True
) -> nn.Module:
    """Build a model of the experts' shape, before it is trained.

    Fresh weights come from the seed and ("expert", expert) or the like; with `init = path`
    (and `pretrained`) the checkpoint is loaded.
    Raises DataError when that can't be used.
    """
    config = manifest.config
    init = config.expert.init
    if init not in ("fresh", "seed") and pretrained:
        return load_model(Path(init), manifest.vocabulary, config.sequence.length)
    key = derive_key(config.run.seed, purpose, expert)
    return build_model(config.expert.model, manifest.vocabulary, config.sequence.length, key)


def train_expert(
    manifest: RunManifest,
    corpus: TokenCorpus,
    expert: int,
    segment_ids: np.ndarray,
    seed_parameters: bytes | Path | None,
    work_folder: Path,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    world: World = ONE_PROCESS,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train expert `expert` on its segment; return the weights' file and the figures.

    `seed_parameters` are the seed model's weights where the run has one. The weights lie in
    `work_folder`, and so do checkpoints, from which a unit that was cut off goes on. Figures
    over time go to `metrics_folder`, or there too.
    """
    config = manifest.config
    model = build_expert(manifest, "expert", expert)
    plan = expert_plan(manifest, torch.device(device))
    if seed_parameters is not None:
        _load(model, seed_parameters)
        plan = _after_seed(manifest, plan)
    order = training_order(
        config.run.seed,
        np.sort(segment_ids),
        plan.steps * plan.batch_sequences,
        "expert-order",
        expert,
    )
    how = _How(work_folder, device, on_progress, should_stop, world, metrics_folder)
    return _train(manifest, corpus, model, plan, order, how)


def train_seed(
    manifest: RunManifest,
    corpus: TokenCorpus,
    work_folder: Path,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    world: World = ONE_PROCESS,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train the one model that all experts branch from, on a sample of the whole corpus."""
    steps, _ = seed_steps(manifest)
    plan = replace(expert_plan(manifest, torch.device(device)), steps=steps)
    model = build_expert(manifest, "seed-model")
    order = training_order(
        manifest.config.run.seed,
        np.arange(manifest.train_sequences),
        steps * plan.batch_sequences,
        "seed-order",
    )
    how = _How(work_folder, device, on_progress, should_stop, world, metrics_folder)
    return _train(manifest, corpus, model, plan, order, how)


def dense_baseline(
    manifest: RunManifest,
    corpus: TokenCorpus,
    work_folder: Path,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    world: World = ONE_PROCESS,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train the dense model that the mixture is compared with, on as many tokens in all.

    Same shape, steps and schedule, a batch E times larger (computed in E times as many
    parts), a pass over the whole training split; fresh weights, or the run's checkpoint.
    """
    base = expert_plan(manifest, torch.device(device))
    plan = replace(
        base,
        batch_sequences=base.batch_sequences * manifest.experts,
        accumulate=base.accumulate * manifest.experts,
    )
    model = build_expert(manifest, "dense")
    order = training_order(
        manifest.config.run.seed,
        np.arange(manifest.train_sequences),
        plan.steps * plan.batch_sequences,
        "dense-order",
    )
    how = _How(work_folder, device, on_progress, should_stop, world, metrics_folder)
    return _train(manifest, corpus, model, plan, order, how)


def evaluate_expert(
    manifest: RunManifest,
    corpus: TokenCorpus,
    weights: bytes | Path,
    heldout_ids: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[str, float]:
    """Return summed losses (nats) and token counts on held-out sequences.

    `prefix_nll` is of tokens 2..M, `suffix_nll` of tokens M+1..S, over all of `heldout_ids`.
    """
    config = manifest.config
    use_threads(config.compute)
    model = build_expert(manifest, "expert")
    _load(model, weights)
    prefix_N, suffix_N = sequence_losses(
        model,
        corpus.heldout,
        np.sort(heldout_ids),
        config.sequence.prefix,
        batch_sequences=config.compute.score_batch,
        dtype=config.compute.score_dtype,
        device=device,
        on_progress=None if on_progress is None else lambda done: on_progress(done, {}),
        should_stop=should_stop,
    )
    count = len(heldout_ids)
    return {
        "sequences": float(count),
        "prefix_nll": float(prefix_N.sum()),
        "suffix_nll": float(suffix_N.sum()),
        "prefix_tokens": float(count * (config.sequence.prefix - 1)),
        "suffix_tokens": float(count * (config.sequence.length - config.sequence.prefix)),
    }


def expert_plan(manifest: RunManifest, device: torch.device) -> TrainPlan:
    """Return how an expert is trained without a seed."""
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


@dataclass(frozen=True)
class _How:
    """Where a model is trained, by whom, and who hears of it."""

    work_folder: Path
    device: torch.device | str
    on_progress: OnProgress | None
    should_stop: ShouldStop | None
    world: World
    metrics_folder: Path | None


def _train(
    manifest: RunManifest,
    corpus: TokenCorpus,
    model: nn.Module,
    plan: TrainPlan,
    order: np.ndarray,
    how: _How,
) -> tuple[Path, dict[str, float]]:
    compute, leads = manifest.config.compute, how.world.rank == 0
    use_threads(compute)
    tell = unit_progress(how.on_progress, 0.0, 1.0)
    with (
        MetricsWriter(how.metrics_folder or how.work_folder) if leads else nullcontext() as metrics
    ):

        def report(progress: Progress) -> None:
            if metrics is not None:
                figures = {"loss": progress.loss, "tokens_per_s": progress.tokens_per_s}
                metrics.write(progress.step, figures)
            if tell is not None:
                tell(progress)

        result = train(
            model,
            corpus.train,
            order,
            plan=plan,
            device=torch.device(how.device),
            checkpoint=CheckpointPolicy(how.work_folder / "checkpoints", compute.checkpoint_s),
            on_progress=report,
            should_stop=how.should_stop,
            world=how.world,
        )
    if not result.finished:
        raise Stopped
    path = how.work_folder / WEIGHTS_FILE
    state_to_file(model, path, write=leads)
    return path, train_figures(result) | curve_figures(result)


def curve_figures(result: TrainResult) -> dict[str, float]:
    """Return the loss curve as figures: `loss_at_<step>` is the mean up to that step."""
    every = max(1, -(-len(result.curve) // CURVE_POINTS))
    return {f"loss_at_{step}": loss for step, loss in result.curve[every - 1 :: every]}


def _load(model: nn.Module, weights: bytes | Path) -> None:
    if isinstance(weights, Path):
        state_from_file(model, weights)
    else:
        state_from_bytes(model, weights)
