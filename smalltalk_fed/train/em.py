"""Algorithm 1 in one process, written plainly: the oracle of distributed runs.

    X <- N fresh sequences; assign at random, equal shares
    repeat T times:
        M-step  every router: SGD on the prefix loss of its share
        E-step  X <- N fresh sequences; scores; balanced assignment
    shard the training split with the frozen routers, slice by slice, balanced

(arXiv 2410.03529, algorithm 1.) Scores go through the same int16 blocks as on the wire, so
that a distributed run on the same seed, machine and threads gives the same assignments,
sequence by sequence. No coordinator, no leases, no messages; experts are not trained here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.jobs import capacity
from smalltalk_fed.mixture.assignment import assign, random_assignment
from smalltalk_fed.mixture.idlists import decode_experts
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, shard_ids
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.train.units import router_round, shard


@dataclass(frozen=True)
class Round:
    """Who trained on what in a round: the chunk's N sequences and the expert of each."""

    ids: np.ndarray
    experts: np.ndarray
    figures: dict[str, float]


@dataclass(frozen=True)
class Oracle:
    """What Algorithm 1 gives: T rounds, E routers, and the expert of every sequence."""

    rounds: list[Round]
    routers: list[bytes]
    train_experts: np.ndarray  # of the training split, balanced
    heldout_experts: np.ndarray  # of the held-out split, free

    def segment(self, expert: int) -> np.ndarray:
        """Return the ids of all training sequences of one expert, ascending."""
        return np.flatnonzero(self.train_experts == expert)


def run_em(
    manifest: RunManifest,
    corpus: TokenCorpus,
    *,
    device: torch.device | str = "cpu",
    on_round: Callable[[int, Round], None] | None = None,
) -> Oracle:
    """Train the routers by EM and divide both splits; `on_round` sees each round (1..T)."""
    config = manifest.config
    seed, count, experts = config.run.seed, config.router.chunk_sequences, manifest.experts
    capacity_E = capacity(manifest, count)
    rounds: list[Round] = []
    routers: list[bytes | None] = [None] * experts

    expert_N = random_assignment(count, capacity_E, derive_key(seed, "first-assignment"))
    figures = {"displaced_fraction": 0.0, "excess_nats": 0.0}
    for number in range(1, config.router.rounds + 1):
        ids_N = chunk_ids(seed, manifest.train_sequences, number - 1, count)
        results = [
            router_round(
                manifest, corpus, e, number, routers[e], ids_N[expert_N == e], device=device
            )
            for e in range(experts)
        ]
        figures["loss_mean"] = float(np.mean([r.figures["loss_mean"] for r in results]))
        rounds.append(Round(ids_N, expert_N, figures))
        if on_round is not None:
            on_round(number, rounds[-1])
        routers = [result.parameters for result in results]
        blocks = [result.score_block for result in results if result.score_block is not None]
        if blocks:
            scores_NxE = np.stack([decode_scores(block, count) for block in blocks], axis=1)
            balanced = assign(scores_NxE, capacity_E, config.assignment.method)
            expert_N = balanced.expert_N
            figures = {
                "displaced_fraction": float(balanced.stats.displaced_fraction),
                "excess_nats": float(balanced.stats.excess_nats),
            }

    final = [parameters for parameters in routers if parameters is not None]
    train_experts = np.empty(manifest.train_sequences, dtype=np.int32)
    for index in range(manifest.shard_count):
        start, stop = manifest.shard_range(index)
        experts_blob = shard(manifest, corpus, final, index, device=device).experts
        ids = shard_ids(seed, manifest.train_sequences, start, stop)
        train_experts[ids] = decode_experts(experts_blob, stop - start, experts)
    heldout = shard(manifest, corpus, final, 0, heldout=True, device=device).experts
    return Oracle(
        rounds=rounds,
        routers=final,
        train_experts=train_experts,
        heldout_experts=decode_experts(heldout, manifest.heldout_sequences, experts),
    )
