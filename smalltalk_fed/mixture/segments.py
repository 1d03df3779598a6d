"""From shards to segments: all sequences of one expert, out of what each slice was told.

Rule: every sequence is in exactly one segment; ids ascend within a segment. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def segments_from_shards(
    shards: Iterable[tuple[NDArray[np.int64], NDArray[np.int32]]], experts: int
) -> list[NDArray[np.int64]]:
    """Return one ascending int64 list of ids per expert.

    `shards` are pairs of ids [N] and the expert of each [N].
    Raises ValueError when lengths differ, an expert is out of range or an id comes twice.
    """
    pairs = list(shards)
    for ids_N, expert_N in pairs:
        if len(ids_N) != len(expert_N):
            raise ValueError(f"a shard has {len(ids_N)} sequences and {len(expert_N)} experts")
    if not pairs:
        return [np.empty(0, np.int64) for _ in range(experts)]
    all_ids = np.concatenate([np.asarray(ids_N, np.int64) for ids_N, _ in pairs])
    all_experts = np.concatenate([np.asarray(expert_N, np.int64) for _, expert_N in pairs])
    if all_experts.size and not 0 <= all_experts.min() <= all_experts.max() < experts:
        raise ValueError(f"a shard names an expert that is not among {experts}")
    order = np.argsort(all_ids, kind="stable")
    all_ids, all_experts = all_ids[order], all_experts[order]
    twice = np.flatnonzero(all_ids[1:] == all_ids[:-1])
    if twice.size:
        raise ValueError(f"sequence {all_ids[twice[0]]} is in two shards")
    return [all_ids[all_experts == expert] for expert in range(experts)]
