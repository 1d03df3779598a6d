"""Blocks of EM rounds within a silo: how its routers learn between two exchanges.

The regime `private` (method.md, section 2, "Private data"): seat k hosts the experts H_k, and
only their routers see its text. Within the silo EM is that of the shared regime, on the silo's
own chunks, balanced over H_k; with one expert the E-step is empty, and its router is simply a
language model of the silo's prefixes.

Rules: a block is a function of manifest, seat, text and the routers that it begins with; its
E-step scores with the routers as they are, so where blocks begin changes nothing. Out come
router parameters, and figures over the whole block; ids and scores stay here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.errors import DataError
from smalltalk_fed.mixture.assignment import equal_capacity, random_assignment
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, training_order
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.device import use_threads
from smalltalk_fed.train.kept_rounds import KeptRounds
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.private_units import private_block
from smalltalk_fed.train.releases import Releases
from smalltalk_fed.train.routers import prefix_scores
from smalltalk_fed.train.silo_text import Rows, SiloText, balance, build_silo_router, without_losses
from smalltalk_fed.train.units import (
    OnProgress,
    ShouldStop,
    checkpoint_policy,
    router_plan,
    unit_progress,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiloBlockResult:
    """Routers after a block of rounds, safetensors by expert, and figures over all of it."""

    parameters: dict[int, bytes]
    figures: dict[str, float]


def block_count(manifest: RunManifest) -> int:
    """Return X: blocks of EM rounds, each followed by an exchange of routers."""
    config = manifest.config
    return -(-config.router.rounds // config.private.exchange_rounds)


def block_rounds(manifest: RunManifest, block: int) -> range:
    """Return the rounds (1..T) of block `block` (1..X)."""
    config = manifest.config
    every = config.private.exchange_rounds
    return range((block - 1) * every + 1, min(block * every, config.router.rounds) + 1)


def silo_chunk_sequences(manifest: RunManifest, seat: int, sequences: int) -> int:
    """Return N_k: sequences of one round in a silo that has so many.

    The part of the run's chunk that the seat's experts are of all, and at most all the silo
    has. Raises DataError when there are fewer than one for each expert.
    """
    experts = len(seat_experts(manifest.config)[seat])
    if sequences < experts:
        raise DataError(
            f"the silo has {sequences} training sequences for {experts} experts; every expert "
            "needs at least one, so bring more text."
        )
    chunk = manifest.config.router.chunk_sequences
    return min(max(experts, chunk * experts // manifest.experts), sequences)


def block_sequences(manifest: RunManifest, seat: int, sequences: int) -> list[int]:
    """Return how many sequences each of the X blocks trains on in a silo that has `sequences`."""
    chunk = silo_chunk_sequences(manifest, seat, sequences)
    blocks = range(1, block_count(manifest) + 1)
    return [chunk * len(block_rounds(manifest, block)) for block in blocks]


def silo_block(
    manifest: RunManifest,
    seat: int,
    corpus: SiloText,
    block: int,
    routers: Mapping[int, bytes],
    *,
    without: Collection[int] = (),
    releases: Releases | None = None,
    work_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> SiloBlockResult:
    """Run the EM rounds of block `block` (1..X) for the routers of seat `seat`.

    `routers` are the seat's own after the block before; none before the first. `without`: its
    experts that have left the mixture; the others' rounds are as long as before. In
    `work_folder` finished rounds are kept, and checkpoints of the one under way, so that a
    block that was cut off goes on there. Under noise (`[privacy]`) the seat's one router is
    trained by `private_block` instead, and `releases` is the silo's ledger.
    Raises DataError for a silo that is too small, Malformed for routers of another shape, and
    Stopped.
    """
    use_threads(manifest.config.compute)
    experts = tuple(e for e in seat_experts(manifest.config)[seat] if e not in without)
    models = {e: build_silo_router(manifest, e, routers.get(e)) for e in experts}
    if manifest.config.privacy.on:
        sequences, (expert,) = len(corpus.train), experts
        parameters, figures = private_block(
            manifest,
            seat,
            corpus.train,
            sequences,
            models[expert],
            block,
            block_sequences(manifest, seat, sequences),
            releases=releases,
            work_folder=work_folder,
            device=device,
            on_progress=on_progress,
            should_stop=should_stop,
        )
        return SiloBlockResult({expert: parameters}, figures)
    silo = _Silo(manifest, seat, corpus.train, torch.device(device), should_stop)
    kept = None if work_folder is None else KeptRounds(work_folder, seat, block, experts, routers)
    rounds = block_rounds(manifest, block)
    done = 0 if kept is None else kept.restore(models)
    for index, round_ in enumerate(rounds):
        if round_ <= done:
            continue
        shares = silo.divide(round_, models)
        for place, expert in enumerate(experts):
            parts = len(rounds) * len(experts)
            part = (index * len(experts) + place) / parts
            silo.m_step(
                models[expert],
                expert,
                round_,
                shares[expert],
                None if kept is None else kept.folder / f"router-{expert}",
                on_progress,
                (part, part + 1 / parts),
            )
        if kept is not None:
            kept.keep(round_, models)
    return SiloBlockResult({e: state_to_bytes(models[e]) for e in experts}, silo.figures())


class _Silo:
    """EM in one silo, and sums over what it did."""

    def __init__(
        self,
        manifest: RunManifest,
        seat: int,
        rows: Rows,
        device: torch.device,
        should_stop: ShouldStop | None,
    ) -> None:
        self._manifest, self._seat, self._rows = manifest, seat, rows
        self._device, self._should_stop = device, should_stop
        self._loss_sum, self._tokens, self._seconds, self._sequences = 0.0, 0, 0.0, 0
        self._balance: dict[str, float] = {}

    def divide(self, round_: int, models: Mapping[int, nn.Module]) -> dict[int, np.ndarray]:
        """E-step: return each expert's ids of the silo's chunk of round `round_` (1..T)."""
        seed, count = self._manifest.config.run.seed, len(models)
        chunk = silo_chunk_sequences(self._manifest, self._seat, len(self._rows))
        ids_N = chunk_ids(seed, len(self._rows), round_ - 1, chunk, f"silo {self._seat}")
        # Experts that left take their part of the chunk along: routers that read more than others
        # would win text for that alone.
        all_of_seat = len(seat_experts(self._manifest.config)[self._seat])
        ids_N = ids_N[: -(-chunk * count // all_of_seat)]
        if round_ == 1 or count == 1:
            key = derive_key(seed, "first-assignment", "silo", self._seat)
            place_N = random_assignment(len(ids_N), equal_capacity(len(ids_N), count), key)
        else:
            scores_NxH = prefix_scores(
                self._manifest,
                list(models.values()),
                self._rows,
                ids_N,
                device=self._device,
                should_stop=self._should_stop,
            )
            balanced = balance(self._manifest, scores_NxH)
            place_N = balanced.expert_N
            self._balance = {
                "displaced_fraction": float(balanced.stats.displaced_fraction),
                "excess_nats": float(balanced.stats.excess_nats),
            }
        return {expert: ids_N[place_N == place] for place, expert in enumerate(models)}

    def m_step(
        self,
        model: nn.Module,
        expert: int,
        round_: int,
        share_ids: np.ndarray,
        checkpoints: Path | None,
        on_progress: OnProgress | None,
        part: tuple[float, float],
    ) -> None:
        """Train one router once over its share."""
        order = training_order(
            self._manifest.config.run.seed,
            np.sort(share_ids),
            len(share_ids),
            "router-order",
            expert,
            round_,
        )
        result = train(
            model,
            self._rows,
            order,
            plan=router_plan(self._manifest, len(share_ids), self._device),
            device=self._device,
            checkpoint=checkpoint_policy(self._manifest, checkpoints) if checkpoints else None,
            on_progress=unit_progress(without_losses(on_progress), *part),
            should_stop=self._should_stop,
        )
        if not result.finished:
            raise Stopped
        self._loss_sum += result.loss_mean * result.tokens
        self._tokens += result.tokens
        self._sequences += len(share_ids)
        self._seconds += result.seconds

    def figures(self) -> dict[str, float]:
        """What the unit reports: means over the block, of what this process did of it.

        Of fewer sequences than the floor of counts no means.
        """
        if not self._tokens:
            return {}
        figures = {
            "tokens": float(self._tokens),
            "seconds": self._seconds,
            "tokens_per_s": self._tokens / max(self._seconds, 1e-9),
        }
        if self._sequences < self._manifest.config.private.count_floor:
            return figures
        return figures | self._balance | {"loss_mean": self._loss_sum / self._tokens}
