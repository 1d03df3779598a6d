"""The unit that trains an expert where its text is, with some public text if the run has it.

Steps follow the expert's share of all silos' training text, or are the same for all (`[private]
steps`). Of every expert's sequences a stated part is public: the rest of the order is pass
after pass over its own segment, and public sequences stand among them at random.

Rules: those of `units` hold. What is reported are means over many sequences: no loss of a
single batch, and no point of the curve over fewer sequences than the floor of counts.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.errors import DataError
from smalltalk_fed.mixture.permutation import Permutation, derive_key, training_order
from smalltalk_fed.train.expert_plans import base_plan, for_share
from smalltalk_fed.train.experts import How, build_expert, train_rows
from smalltalk_fed.train.parallel import ONE_PROCESS, World
from smalltalk_fed.train.plan import CURVE_RAW_POINTS, TrainPlan
from smalltalk_fed.train.silo_text import Rows, SiloText, without_losses
from smalltalk_fed.train.units import OnProgress, ShouldStop


class JoinedRows:
    """A silo's rows, and public ones after them: id len(own) + i is public row i."""

    def __init__(self, own: Rows, public: RowSource) -> None:
        self._own, self._public, self._count = own, public, len(own)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids, as in `TokenSplit.rows`."""
        ids_N = np.asarray(ids)
        is_own_N = ids_N < self._count
        own = self._own.rows(ids_N[is_own_N], tokens)
        public = self._public.rows(ids_N[~is_own_N] - self._count, tokens)
        out_NxT = np.empty((len(ids_N), own.shape[1]), np.result_type(own, public))
        out_NxT[is_own_N], out_NxT[~is_own_N] = own, public
        return out_NxT


def silo_plan(manifest: RunManifest, device: torch.device, share: float) -> TrainPlan:
    """Return how an expert is trained whose part of all silos' training text is `share`."""
    plan = base_plan(manifest, device)
    if manifest.config.private.steps == "equal":
        return plan
    return for_share(plan, share * manifest.experts)


def silo_order(
    manifest: RunManifest, expert: int, own_ids: np.ndarray, public_ids: np.ndarray, count: int
) -> np.ndarray:
    """Return which sequences expert `expert` trains on, int64[count], in that order.

    `public_ids` are places after the silo's own. The public part is `public_share`, to the
    nearest sequence. Raises DataError when a part is wanted of which there is nothing.
    """
    seed, share = manifest.config.run.seed, manifest.config.private.public_share
    public_count = round(share * count)
    parts = [(own_ids, count - public_count, "own"), (public_ids, public_count, "public")]
    for ids, wanted, whose in parts:
        if wanted and not len(ids):
            raise DataError(f"expert {expert} has no {whose} text to train on; bring some.")
    chosen = [
        training_order(seed, np.sort(ids), wanted, "silo-order", whose, expert)
        for ids, wanted, whose in parts
        if wanted
    ]
    order = np.concatenate(chosen)
    if not public_count:
        return order
    return order[Permutation(count, derive_key(seed, "silo-mix", expert)).range(0, count)]


def train_silo_expert(
    manifest: RunManifest,
    corpus: SiloText,
    expert: int,
    own_ids: np.ndarray,
    share: float,
    work_folder: Path,
    *,
    public: RowSource | None = None,
    public_ids: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    world: World = ONE_PROCESS,
    metrics_folder: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train expert `expert` on its own segment and its share of the public text.

    `share` is the expert's part of all silos' training text (`silo_prices.expert_shares`),
    `public_ids` its segment of the public corpus, whose rows are `public`. Returns the weights'
    file in `work_folder`, which stays there unless the owner shares it, and figures.
    """
    on = torch.device(device)
    plan = silo_plan(manifest, on, share)
    rows: RowSource = corpus.train
    public_N = np.empty(0, np.int64)
    if public is not None and public_ids is not None:
        rows = JoinedRows(corpus.train, public)
        public_N = np.asarray(public_ids, np.int64) + len(corpus.train)
    order = silo_order(manifest, expert, own_ids, public_N, plan.steps * plan.batch_sequences)
    model = build_expert(manifest, "expert", expert)
    how = How(work_folder, device, without_losses(on_progress), should_stop, world, metrics_folder)
    path, figures = train_rows(manifest, rows, model, plan, order, how)
    return path, _of_many(manifest, figures, plan)


def _of_many(manifest: RunManifest, figures: dict[str, float], plan: TrainPlan) -> dict[str, float]:
    """What may leave: without the losses of few sequences."""
    fewest_steps = math.ceil(manifest.config.private.count_floor / plan.batch_sequences)
    steps_a_point = plan.steps // CURVE_RAW_POINTS or 1
    few = {"loss_first", "loss_last"}
    few |= {"loss_mean"} if plan.steps < fewest_steps else set()
    if steps_a_point < fewest_steps:
        few |= {name for name in figures if name.startswith("loss_at_")}
    return {name: value for name, value in figures.items() if name not in few}
