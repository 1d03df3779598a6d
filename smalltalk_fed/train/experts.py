"""The units that train large models: seed, experts, dense baseline.

Experts start fresh, from a checkpoint that every node can read, or from one seed model. With
a seed the tokens in all stay what they were: it takes `seed_fraction` of every expert's
steps, E times as many steps of its own at the same batch, and the experts do the rest at
`seed_rate_factor` of the peak rate (method.md, section 4, "When it pays"). The dense baseline
has the experts' shape and number of steps and a batch E times larger, as in the paper. How
many steps and at which rates is `expert_plans`' part. The rules of `units` hold here too.
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
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.errors import Malformed
from smalltalk_fed.mixture.permutation import derive_key, training_order
from smalltalk_fed.model.build import build_model, load_model
from smalltalk_fed.model.state import state_from, state_to_file
from smalltalk_fed.train.device import use_threads
from smalltalk_fed.train.expert_plans import base_plan, expert_plan, seed_steps
from smalltalk_fed.train.handing_out import HandOutPolicy, OnState
from smalltalk_fed.train.lineage import FROM_THE_BEGINNING, Start, begin_lineage, own_training
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.metrics import MetricsWriter
from smalltalk_fed.train.parallel import ONE_PROCESS, World
from smalltalk_fed.train.plan import Progress, Stopped, TrainPlan, TrainResult
from smalltalk_fed.train.state import fingerprint
from smalltalk_fed.train.units import (
    OnProgress,
    ShouldStop,
    checkpoint_policy,
    train_figures,
    unit_progress,
)

CURVE_POINTS = 40
WEIGHTS_FILE = "model.safetensors"


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
    start: Start = FROM_THE_BEGINNING,
    state: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    on_state: OnState | None = None,
    should_stop: ShouldStop | None = None,
    world: World = ONE_PROCESS,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train expert `expert` on its segment; return the weights' file and the figures.

    `seed_parameters` are the seed model's weights where the run has one. With a `start` it
    was trained up to there, and `state` are its weights then; if it was this very folder's
    training, that goes on where it is, and needs no state. The weights lie in `work_folder`,
    and so do checkpoints, from which a unit that was cut off goes on. `on_state` hears of the
    files of weights that the run collects part-way. Figures over time go to `metrics_folder`,
    or there too.
    Raises Malformed when the state is not of this expert.
    """
    config, seeded = manifest.config, seed_parameters is not None
    on = torch.device(device)
    model = build_expert(manifest, "expert", expert)
    own = own_training(work_folder, start)
    begun = (own.start if own is not None else start).step
    plan = expert_plan(manifest, on, len(segment_ids), seeded=seeded, start_step=begun)
    if not 0 <= start.step < plan.steps or (start.step > 0 and own is None and state is None):
        raise Malformed(
            f"expert {expert} can't go on at step {start.step} of {plan.steps} "
            f"{'with' if state else 'without'} the weights of then"
        )
    order = training_order(
        config.run.seed,
        np.sort(segment_ids),
        plan.steps * plan.batch_sequences,
        "expert-order",
        expert,
    )
    if own is not None:
        run = own.run
    else:
        weights = state or seed_parameters
        if weights is not None:
            state_from(model, weights)
        run = fingerprint(plan, order, model)
        if world.rank == 0:
            begin_lineage(work_folder, start, run)
    how = How(
        work_folder, device, on_progress, should_stop, world, metrics_folder, run, own is not None
    )
    every = config.expert.collect_every_steps
    if every:
        how = replace(how, hand_out=HandOutPolicy(every, work_folder, on_state, start.step))
    path, figures = train_rows(manifest, corpus.train, model, plan, order, how)
    return path, figures | {"from_step": float(start.step)}


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
    plan = replace(base_plan(manifest, torch.device(device)), steps=steps)
    model = build_expert(manifest, "seed-model")
    order = training_order(
        manifest.config.run.seed,
        np.arange(manifest.train_sequences),
        steps * plan.batch_sequences,
        "seed-order",
    )
    how = How(work_folder, device, on_progress, should_stop, world, metrics_folder)
    return train_rows(manifest, corpus.train, model, plan, order, how)


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
    base = base_plan(manifest, torch.device(device))
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
    how = How(work_folder, device, on_progress, should_stop, world, metrics_folder)
    return train_rows(manifest, corpus.train, model, plan, order, how)


@dataclass(frozen=True)
class How:
    """Where a model is trained, by whom, and who hears of it."""

    work_folder: Path
    device: torch.device | str
    on_progress: OnProgress | None
    should_stop: ShouldStop | None
    world: World
    metrics_folder: Path | None
    run: str = ""  # whose checkpoints; empty: what plan, order and start say
    only_on: bool = False  # there must be one
    hand_out: HandOutPolicy | None = None


def train_rows(
    manifest: RunManifest,
    rows: RowSource,
    model: nn.Module,
    plan: TrainPlan,
    order: np.ndarray,
    how: How,
) -> tuple[Path, dict[str, float]]:
    """Train `model` on the sequences `order` of `rows`; return weights' file and figures.

    Raises Stopped when it was told to stop before it was done.
    """
    leads = how.world.rank == 0
    use_threads(manifest.config.compute)
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
            rows,
            order,
            plan=plan,
            device=torch.device(how.device),
            checkpoint=replace(
                checkpoint_policy(manifest, how.work_folder), run=how.run, only_on=how.only_on
            ),
            hand_out=how.hand_out,
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
