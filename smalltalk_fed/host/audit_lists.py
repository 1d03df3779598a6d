"""Are id lists what they must be? Shares against their chunk, segments against the corpus.

Rules: a round's shares hold the sequences of its chunk, each as often as the chunk does
(which is once, unless the chunk spans two passes); over the rounds no sequence comes twice
in a pass, and a pass that is over has left none out; segments hold every training sequence
once and agree with what the slices said. Pure functions of manifest and lists; what is wrong
comes back as a sentence, and an empty one says that nothing is. Memory: a few arrays of the
corpus' length, whatever the number of rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.mixture.permutation import chunk_ids, shard_ids

Ids = NDArray[np.int64]
Experts = NDArray[np.int32]


@dataclass
class Passes:
    """Which sequences the rounds so far have used up, pass by pass."""

    manifest: RunManifest
    rounds: int = 0
    whole: int = 0  # passes that are over
    used: int = 0  # sequences of the pass under way
    _seen: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = np.zeros(self.manifest.train_sequences, bool)

    def use(self, round_: int) -> str:
        """Count the chunk of the next round (1, 2, 3, ...); a gap ends the counting."""
        if round_ != self.rounds + 1:
            return ""
        self.rounds = round_
        total, rest = self.manifest.train_sequences, chunk(self.manifest, round_)
        while rest.size:
            part, rest = np.split(rest, [min(rest.size, total - self.used)])
            self._seen[part] = True
            self.used += part.size
            if np.count_nonzero(self._seen) != self.used:
                return f"a sequence of round {round_} was used before in pass {self.whole + 1}"
            if self.used == total:
                self._seen[:] = False
                self.whole, self.used = self.whole + 1, 0
        return ""


def chunk(manifest: RunManifest, round_: int) -> Ids:
    """The sequences of a round (1..T), int64[N]."""
    count = manifest.config.router.chunk_sequences
    return chunk_ids(manifest.config.run.seed, manifest.train_sequences, round_ - 1, count)


def check_shares(manifest: RunManifest, round_: int, shares: Sequence[Ids]) -> str:
    """Whether the shares of a round are together exactly its chunk."""
    wanted_N, found_N = np.sort(chunk(manifest, round_)), np.sort(np.concatenate(shares))
    if np.array_equal(wanted_N, found_N):
        return ""
    ids, place_N = np.unique(np.concatenate([wanted_N, found_N]), return_inverse=True)
    wanted = np.bincount(place_N[: wanted_N.size], minlength=ids.size)
    found = np.bincount(place_N[wanted_N.size :], minlength=ids.size)
    for odd in ids[(found > 0) & (wanted == 0)]:
        return f"sequence {odd} is in a share, but not in the chunk of round {round_}"
    for odd in ids[found > wanted]:
        holders = [str(expert) for expert, share in enumerate(shares) if odd in share]
        return f"sequence {odd} is in shares twice (of expert {' and '.join(holders)})"
    odd = ids[found < wanted][0]
    return f"sequence {odd} of the chunk of round {round_} is in no share"


def check_segments(manifest: RunManifest, segments: Sequence[Ids]) -> tuple[str, Experts]:
    """Whether every training sequence is in exactly one segment; and the expert of each [n]."""
    expert_n = np.full(manifest.train_sequences, -1, np.int32)
    for expert, ids in enumerate(segments):
        behind = np.flatnonzero(np.diff(ids) <= 0)
        if behind.size:
            odd = ids[behind[0] + 1]
            return f"sequence {odd} is twice or out of order in segment {expert}", expert_n
        taken = np.flatnonzero(expert_n[ids] >= 0)
        if taken.size:
            odd = ids[taken[0]]
            return f"sequence {odd} is in segments {expert_n[odd]} and {expert}", expert_n
        expert_n[ids] = expert
    left = np.flatnonzero(expert_n < 0)
    return (f"sequence {left[0]} is in no segment" if left.size else ""), expert_n


def check_slices(
    manifest: RunManifest,
    expert_n: Experts,
    slices: Iterable[tuple[int, Experts]],
) -> str:
    """Whether segments are what the slices said; pairs of a slice's index and its experts."""
    for index, said_N in slices:
        ids_N = shard_ids(
            manifest.config.run.seed, manifest.train_sequences, *manifest.shard_range(index)
        )
        other = np.flatnonzero(expert_n[ids_N] != said_N)
        if other.size:
            odd, said = ids_N[other[0]], said_N[other[0]]
            return f"sequence {odd} is in segment {expert_n[odd]}, shard/{index} said {said}"
    return ""
