"""A silo's units under noise: a block of a router's training, and a row of counts.

What `silo`'s units call where `[privacy]` is on, with the ledger of what was given. Rules: the
text is touched inside `Releases.once` alone, so that a unit that is asked for again costs
nothing more; figures of training are steps, tokens and speed, never a loss; every answer says
what the silo has spent so far (`epsilon`, `delta`). One expert a silo: its router trains on all
of the silo's text (`config.privacy` refuses others), so that rounds have no meaning within a
block: it has as many steps as look at the rounds' sequences once on average.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.loader import RowSource
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.privacy_cost import counts_spent, private_steps, routers_spent
from smalltalk_fed.train.private_sgd import PrivatePlan, train_privately
from smalltalk_fed.train.releases import Releases, inputs_digest
from smalltalk_fed.train.secret_noise import SecretNoise, noised_counts
from smalltalk_fed.train.units import (
    OnProgress,
    ShouldStop,
    checkpoint_policy,
    router_optimizer,
)

STEPS, COUNTS = "steps of router training", "rows of counts"  # kinds in the ledger


def release_limits(manifest: RunManifest, seen: Sequence[int]) -> dict[str, int]:
    """Return the most that a silo gives over the run, by kind, for its `Releases`.

    `seen` are the sequences that each of the X blocks trains on, in turn. After each block but
    the last one row of counts is sent, after the last `private.price_rounds`.
    """
    config = manifest.config
    batch = config.router.batch_sequences
    return {
        STEPS: sum(private_steps(config.privacy, batch, count) for count in seen),
        COUNTS: len(seen) - 1 + config.private.price_rounds,
    }


def private_block(
    manifest: RunManifest,
    seat: int,
    rows: RowSource,
    sequences: int,
    model: nn.Module,
    block: int,
    seen: Sequence[int],
    *,
    releases: Releases | None = None,
    work_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    noise: SecretNoise | None = None,
) -> tuple[bytes, dict[str, float]]:
    """Train the router of `seat` for block `block` (1..X); its parameters, and figures.

    `model` has the parameters after the block before, and may be changed; `rows` are the
    silo's `sequences` of training text, `seen` is as in `release_limits`. Without `releases`
    the answer is made anew each time, and the cost is that of a run without repetitions.
    Raises Stopped, Refused when the silo has nothing left to give, and as `train_privately`.
    """
    config, device = manifest.config, torch.device(device)
    privacy, batch = config.privacy, config.router.batch_sequences
    steps_X = [private_steps(privacy, batch, count) for count in seen]
    plan = _plan(manifest, steps_X[block - 1])
    inputs = inputs_digest({"router": state_to_bytes(model)})

    def make() -> dict[str, bytes]:
        result = train_privately(
            model,
            rows,
            sequences,
            plan=plan,
            device=device,
            checkpoint=checkpoint_policy(manifest, work_folder) if work_folder else None,
            on_progress=on_progress,
            should_stop=should_stop,
            noise=noise,
        )
        if not result.finished:
            raise Stopped
        return {"router": state_to_bytes(model), "figures": json.dumps(result.figures).encode()}

    outputs = _once(releases, f"silo_block/{seat}/{block}", inputs, STEPS, plan.steps, make)
    steps = releases.spent(STEPS) if releases else sum(steps_X[:block])
    spent = routers_spent(privacy, batch, sequences, steps)
    return outputs["router"], json.loads(outputs["figures"]) | spent.figures


def private_counts(
    manifest: RunManifest,
    unit: str,
    sequences: int,
    inputs: Mapping[str, bytes],
    count: Callable[[], np.ndarray],
    *,
    rows_before: int = 0,
    releases: Releases | None = None,
    noise: SecretNoise | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Return `count`'s row under noise, int64[E], and what it cost so far; nothing is withheld.

    `unit` is the unit's id, `inputs` all that the row depends on besides the silo's `sequences`
    of held-out text: routers and prices, by name. `rows_before`: rows given before this one,
    where there are no `releases` to tell. A unit that was answered has that answer for good, also
    when an expert has left since and it is asked for with fewer routers. Raises Refused when the
    silo has none left to give.
    """
    privacy = manifest.config.privacy

    def make() -> dict[str, bytes]:
        row_E = noised_counts(count(), privacy.count_noise, noise or SecretNoise())
        return {"counts": row_E.astype("<i8").tobytes()}

    outputs: Mapping[str, bytes] | None = releases.given(unit, COUNTS) if releases else None
    if outputs is None:
        outputs = _once(releases, unit, inputs_digest(inputs), COUNTS, 1, make)
    rows = releases.spent(COUNTS) if releases else rows_before + 1
    row_E = np.frombuffer(outputs["counts"], dtype="<i8").astype(np.int64)
    return row_E, counts_spent(privacy, sequences, rows).figures


def _once(
    releases: Releases | None,
    unit: str,
    inputs: str,
    kind: str,
    amount: int,
    make: Callable[[], Mapping[str, bytes]],
) -> Mapping[str, bytes]:
    return make() if releases is None else releases.once(unit, inputs, kind, amount, make)


def _plan(manifest: RunManifest, steps: int) -> PrivatePlan:
    """Return a block's training; AdamW's moments start anew, as in a round without noise."""
    config = manifest.config
    prefix, length = config.sequence.prefix, config.sequence.length
    return PrivatePlan(
        optimizer=router_optimizer(config.router.optimizer, steps),
        steps=steps,
        batch_sequences=config.privacy.expected_batch or config.router.batch_sequences,
        tokens=prefix if config.router.train_tokens == "prefix" else length,
        noise=config.privacy.router_noise,
        clip=config.privacy.router_clip,
    )
