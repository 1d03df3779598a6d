"""The models that `private.py` compares, each trained once and then only looked up.

Rules: what is compared has the same shape, optimizer and tokens in all. Experts are trained by
the units of a private run. `alone` is one model of a silo with several experts, on its text with
the compute of them all; `dense` one model on all text, in batches as large as all experts'
together; `fedavg` one model by federated averaging (McMahan and others 2017, algorithm 1): in
every round each silo goes on from the average with fresh moments of AdamW, for its share of the
steps, and the average weighs silos by the steps that they did. Cosine schedules run over the
whole of the training, for all alike.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from private_silos import Picked, Silo
from torch import nn

from smalltalk_fed.config.manifest import RunManifest, canonical_json
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.mixture.permutation import training_order
from smalltalk_fed.model.state import state_from
from smalltalk_fed.train.expert_plans import base_plan, for_share
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.scoring import sequence_losses
from smalltalk_fed.train.silo_expert import silo_plan, train_silo_expert

CPU = torch.device("cpu")
FEDAVG_RAMP_STEPS = 2  # of each round, since AdamW's moments start at zero


class Models:
    """Trains on demand, and remembers every model's losses on all held-out sequences."""

    def __init__(
        self, manifest: RunManifest, corpus: TokenCorpus, silos: Sequence[Silo], keep: Path
    ) -> None:
        self.manifest, self.corpus, self.silos, self.keep = manifest, corpus, silos, keep
        self.pooled = Picked(
            corpus.train, np.sort(np.concatenate([silo.train.ids for silo in silos]))
        )

    def expert(self, seat: int, expert: int, own_ids: np.ndarray, share: float) -> np.ndarray:
        """An expert trained in its silo; float64[2, N]: nats of prefix and of suffix."""
        silo = self.silos[seat]
        steps = silo_plan(self.manifest, CPU, share).steps

        def make() -> nn.Module:
            with tempfile.TemporaryDirectory() as work:
                path, _ = train_silo_expert(self.manifest, silo, expert, own_ids, share, Path(work))
                model = build_expert(self.manifest, "expert", expert)
                state_from(model, path)
            return model

        return self._losses(f"expert {expert}", make, silo.train.ids[own_ids], steps)

    def alone(self, seat: int, share: float) -> np.ndarray:
        """One model on a silo's text with the compute of its experts, whose part is `share`."""
        silo = self.silos[seat]
        plan = silo_plan(self.manifest, CPU, share / silo.experts)
        batch = plan.batch_sequences * silo.experts
        plan = replace(plan, batch_sequences=batch, accumulate=silo.experts)

        def make() -> nn.Module:
            model = build_expert(self.manifest, "alone", seat)
            order = self._order(silo.train, plan.steps * batch, "alone", seat)
            train(model, silo.train, order, plan=plan, device=CPU)
            return model

        return self._losses(f"alone {seat}", make, silo.train.ids, plan.steps, batch)

    def dense(self, batches_of: int) -> np.ndarray:
        """One model on all text: what privacy forbids. A batch is `batches_of` experts'."""
        base = base_plan(self.manifest, CPU)
        plan = replace(
            base,
            steps=base.steps * self.manifest.experts // batches_of,
            batch_sequences=base.batch_sequences * batches_of,
            accumulate=batches_of,
        )

        def make() -> nn.Module:
            model = build_expert(self.manifest, "dense")
            order = self._order(self.pooled, plan.steps * plan.batch_sequences, "dense")
            train(model, self.pooled, order, plan=plan, device=CPU)
            return model

        return self._losses("dense", make, self.pooled.ids, plan.steps, plan.batch_sequences)

    def fedavg(self, rounds: int) -> np.ndarray:
        """One model by federated averaging over the silos."""
        ids = np.concatenate([np.append(silo.train.ids, -1) for silo in self.silos])
        steps = self.manifest.config.expert.steps * self.manifest.experts
        return self._losses(f"fedavg {rounds}", lambda: self._fedavg(rounds), ids, steps)

    def _fedavg(self, rounds: int) -> nn.Module:
        base = base_plan(self.manifest, CPU)
        model = build_expert(self.manifest, "fedavg")
        average = _weights(model)
        plans, orders = [], []
        for seat, silo in enumerate(self.silos):
            part = len(silo.train) / len(self.pooled) * self.manifest.experts
            plan = for_share(base, part)
            plans.append(plan)
            orders.append(
                self._order(silo.train, plan.steps * plan.batch_sequences, "fedavg", seat)
            )
        for round_ in range(rounds):
            sums = {name: torch.zeros_like(weight) for name, weight in average.items()}
            steps_done = 0
            for silo, plan, order in zip(self.silos, plans, orders, strict=True):
                start = round_ * plan.steps // rounds
                stop = (round_ + 1) * plan.steps // rounds
                if start == stop:
                    continue
                _set_weights(model, average)
                ramp = min(FEDAVG_RAMP_STEPS, (stop - start) // 4)
                train(
                    model,
                    silo.train,
                    order,
                    plan=replace(plan, start_step=start, ramp_steps=ramp),
                    device=CPU,
                    should_stop=_after(stop - start),
                )
                for name, weight in _weights(model).items():
                    sums[name] += (stop - start) * weight
                steps_done += stop - start
            average = {name: weight / steps_done for name, weight in sums.items()}
        _set_weights(model, average)
        return model

    def _order(self, rows: Picked, count: int, *purpose: str | int) -> np.ndarray:
        return training_order(self.manifest.config.run.seed, np.arange(len(rows)), count, *purpose)

    def _losses(
        self, name: str, make: Callable[[], nn.Module], ids: np.ndarray, *facts: int
    ) -> np.ndarray:
        config = self.manifest.config
        expert = config.expert.model_dump(mode="json", exclude={"steps"})
        what = canonical_json([name, config.run.seed, config.sequence.length, expert, list(facts)])
        key = hashlib.sha256(what + ids.astype(np.int64).tobytes()).hexdigest()[:24]
        file = self.keep / f"{name.replace(' ', '-')}-{key}.npy"
        if not file.exists():
            began = time.monotonic()
            losses = sequence_losses(
                make(),
                self.corpus.heldout,
                np.arange(len(self.corpus.heldout)),
                config.sequence.prefix,
                batch_sequences=config.compute.score_batch,
            )
            np.save(file, np.stack(losses))
            note(f"{name}: {time.monotonic() - began:.0f} s")
        return np.asarray(np.load(file))


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _set_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])


def note(text: str) -> None:
    """Say on stderr what was done."""
    print(text, file=sys.stderr, flush=True)


def _after(steps: int) -> Callable[[], bool]:
    """Stop when asked for the `steps`th time, which is after so many steps."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) >= steps
