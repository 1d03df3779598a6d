"""The models that `private.py` compares, each trained once and then only looked up.

Experts are the units of a private run. `dense` is one model on all text, in batches as large as
several experts' together or of one; `fedavg` one model by federated averaging
(`private_fedavg`). All see as many tokens as all experts together, and cosine schedules run over
the whole of the training, for all alike.

Rules: what is kept is a model's losses on all held-out sequences, float64[2, N] (nats of prefix
and of suffix), in a file named after the digest of all that the model depends on.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from private_fedavg import CPU, Averaging
from private_silos import Picked, Silo
from torch import nn

from smalltalk_fed.config.manifest import RunManifest, canonical_json
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.mixture.permutation import training_order
from smalltalk_fed.model.state import state_from
from smalltalk_fed.train.expert_plans import base_plan
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan
from smalltalk_fed.train.scoring import sequence_losses
from smalltalk_fed.train.silo_expert import silo_plan, train_silo_expert


class Models:
    """Trains on demand, and remembers every model's losses; `steps` are of all experts together."""

    def __init__(
        self,
        manifest: RunManifest,
        corpus: TokenCorpus,
        silos: Sequence[Silo],
        steps: int,
        keep: Path,
    ) -> None:
        self.manifest, self.corpus, self.silos = manifest, corpus, silos
        self.steps, self.keep = steps, keep
        self.pooled = Picked(
            corpus.train, np.sort(np.concatenate([silo.train.ids for silo in silos]))
        )

    def expert(
        self,
        seat: int,
        expert: int,
        own_ids: np.ndarray,
        share: float,
        public: Picked | None = None,
        public_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """An expert trained in its silo on its own segment, and its segment of public text."""
        silo = self.silos[seat]
        plan = silo_plan(self.manifest, CPU, share)
        ids = [silo.train.ids[own_ids]]
        if public is not None and public_ids is not None:
            ids += [np.array([-1]), public.ids[public_ids]]

        def make() -> nn.Module:
            rows: RowSource | None = public
            with tempfile.TemporaryDirectory() as work:
                path, _ = train_silo_expert(
                    self.manifest,
                    silo,
                    expert,
                    own_ids,
                    share,
                    Path(work),
                    public=rows,
                    public_ids=public_ids,
                )
                model = build_expert(self.manifest, "expert", expert)
                state_from(model, path)
            return model

        return self._losses(
            f"expert {expert}", make, np.concatenate(ids), plan,
            self.manifest.config.private.public_share,
        )  # fmt: skip

    def dense(self, batches_of: int) -> np.ndarray:
        """One model on all text: what privacy forbids. A batch is `batches_of` experts'."""
        base = base_plan(self.manifest, CPU)
        plan = replace(
            base,
            steps=self.steps // batches_of,
            batch_sequences=base.batch_sequences * batches_of,
            accumulate=batches_of,
        )

        def make() -> nn.Module:
            model = build_expert(self.manifest, "dense")
            seed, every = self.manifest.config.run.seed, np.arange(len(self.pooled))
            order = training_order(seed, every, plan.steps * plan.batch_sequences, "dense")
            train(model, self.pooled, order, plan=plan, device=CPU)
            return model

        return self._losses("dense", make, self.pooled.ids, plan)

    def fedavg(self, rounds: int) -> np.ndarray:
        """One model by federated averaging over the silos."""
        averaging = Averaging(self.manifest, self.silos, self.steps, rounds)
        ids = np.concatenate([np.append(silo.train.ids, -1) for silo in self.silos])
        plan = averaging.plan(0)
        return self._losses(
            f"fedavg {rounds}", lambda: averaging.model(averaging.run()), ids, plan, self.steps
        )

    def losses_of(self, model: nn.Module) -> np.ndarray:
        """A model's losses on all held-out sequences."""
        config = self.manifest.config
        losses = sequence_losses(
            model,
            self.corpus.heldout,
            np.arange(len(self.corpus.heldout)),
            config.sequence.prefix,
            batch_sequences=config.compute.score_batch,
        )
        return np.stack(losses)

    def _losses(
        self,
        name: str,
        make: Callable[[], nn.Module],
        ids: np.ndarray,
        plan: TrainPlan,
        *facts: float,
    ) -> np.ndarray:
        config = self.manifest.config
        model = config.model_dump(mode="json")["expert"]["model"]
        init = Path(config.expert.init).name
        what = canonical_json(
            [
                [name, config.run.seed, config.sequence.length, model, init],
                plan.optimizer.model_dump(mode="json"),
                [plan.steps, plan.batch_sequences, *facts],
            ]
        )
        key = hashlib.sha256(what + ids.astype(np.int64).tobytes()).hexdigest()[:24]
        file = self.keep / f"{name.replace(' ', '-')}-{key}.npy"
        if not file.exists():
            began = time.process_time()
            part = file.with_suffix(".part.npy")
            np.save(part, self.losses_of(make()))
            part.replace(file)
            note(f"{name}: {plan.steps} steps, {time.process_time() - began:.0f} s of CPU")
        return np.asarray(np.load(file))


def public_seed(manifest: RunManifest, public: Picked, steps: int, keep: Path) -> Path:
    """A model trained on public text alone, for experts to start from: its folder."""
    plan = replace(base_plan(manifest, CPU), steps=steps)
    seed = manifest.config.run.seed
    facts = canonical_json([seed, steps, plan.optimizer.model_dump(mode="json")])
    key = hashlib.sha256(facts + public.ids.astype(np.int64).tobytes()).hexdigest()[:24]
    folder = keep / f"seed-{key}"
    if not folder.exists():
        model: Any = build_expert(manifest, "seed")
        order = training_order(seed, np.arange(len(public)), steps * plan.batch_sequences, "seed")
        train(model, public, order, plan=plan, device=CPU)
        part = folder.with_suffix(".part")
        model.save_pretrained(part)
        part.replace(folder)
        note(f"seed of {steps} steps on {len(public)} public sequences")
    return folder.resolve()


def note(text: str) -> None:
    """Say on stderr what was done."""
    print(text, file=sys.stderr, flush=True)
