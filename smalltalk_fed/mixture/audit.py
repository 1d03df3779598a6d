"""Audits: which sequences an opinion is about, and how it is laid out.

An opinion on somebody's result is one score block. It holds parts of K scores each
(`audit.sample_sequences`), one after the other, in the order of `parts_of`; every part is
the log-likelihood of K prefixes under one model:

    router_round   next                       chunk r+1 under the new parameters; not after the
                                              last round, in which nothing is scored
                   public_before, _after      held-out text, under the parameters before and
                                              after the round; not without held-out text
                   own_before, _after         the router's share of chunk r
                   rest_before, _after        the rest of chunk r; not for a lone expert
                   own_redo, rest_redo        the same two, if the round was trained again for
                                              the opinion, under what came of that
    shard          router_0 .. router_E-1     a slice, or the held-out text, under all routers
    train_expert   own_expert, own_router,    held-out text that is routed to the expert, under
                   own_others                 it, its router, and the other routers' mean
                   other_expert, _router, _others    held-out text that is routed elsewhere
                   whole                      all S tokens of sequences of its segment under
                                              the expert, as if M - 1 of them were predicted

Rules: the layout follows from manifest, unit and its `redo`, the sample from its `sample`,
which nobody knows before the result is in; both by keyed permutations, so that auditor and
judge draw the same. Sets smaller than K are gone through again. Where no held-out sequence
is routed to an expert, or none elsewhere, training text takes its place. Scores are kept
within 0 and `WORST` times a uniform guess: what is beyond is bad, and needs no finer step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import HELDOUT, UnitKey, UnitKind
from smalltalk_fed.mixture.permutation import chunk_ids, training_order
from smalltalk_fed.mixture.scores import decode_scores, encode_scores

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

WORST = 4.0  # times the loss of a uniform guess


@dataclass(frozen=True, eq=False)
class RouterSample:
    """Sequences of a `router_round`'s opinion, K each; `next_ids` and `public_ids` may be none."""

    next_ids: Ids
    public_ids: Ids  # of the held-out split
    own_ids: Ids
    rest_ids: Ids


@dataclass(frozen=True, eq=False)
class ExpertSample:
    """Sequences of a `train_expert`'s opinion, K each; `own_ids`, `other_ids` of one split."""

    heldout: bool
    own_ids: Ids
    other_ids: Ids  # none for a lone expert
    whole_ids: Ids  # of the training split


def parts_of(manifest: RunManifest, target: UnitKey, redo: bool = False) -> tuple[str, ...]:
    """The parts of an opinion on a result of `target`, in order; `redo`: it was trained again."""
    alone = manifest.experts == 1
    if target.kind is UnitKind.SHARD:
        return tuple(f"router_{expert}" for expert in range(manifest.experts))
    if target.kind is UnitKind.TRAIN_EXPERT:
        if alone:
            return ("own_expert", "own_router", "whole")
        models = ("expert", "router", "others")
        return (*(f"{text}_{each}" for text in ("own", "other") for each in models), "whole")
    last = target.index == manifest.config.router.rounds
    again = ("own_redo",) if alone else ("own_redo", "rest_redo")
    return (
        *(() if last else ("next",)),
        *(("public_before", "public_after") if manifest.heldout_sequences else ()),
        "own_before",
        "own_after",
        *(() if alone else ("rest_before", "rest_after")),
        *(again if redo else ()),
    )


def opinion_scores(manifest: RunManifest, target: UnitKey, redo: bool = False) -> int:
    """How many scores an opinion on `target` holds."""
    return manifest.config.audit.sample_sequences * len(parts_of(manifest, target, redo))


def uniform_nats(manifest: RunManifest) -> float:
    """Loss of a prefix of which every token is guessed uniformly: (M - 1) log V."""
    return (manifest.config.sequence.prefix - 1) * math.log(manifest.vocabulary)


def encode_opinion(
    manifest: RunManifest, target: UnitKey, parts: Mapping[str, ArrayLike], redo: bool = False
) -> bytes:
    """Encode an opinion; `parts` are K scores each, by name. What is no number is the worst."""
    worst = -WORST * uniform_nats(manifest)
    names = parts_of(manifest, target, redo)
    scores = np.concatenate([np.asarray(parts[name]) for name in names])
    scores = np.nan_to_num(scores, nan=worst, posinf=worst, neginf=worst)
    return encode_scores(np.clip(scores, worst, 0.0).astype(np.float32))


def decode_opinion(
    manifest: RunManifest, target: UnitKey, data: bytes, redo: bool = False
) -> dict[str, Scores]:
    """Decode an opinion to its parts.

    Raises ValueError, naming what is wrong, for anything but the right number of scores.
    """
    scores = decode_scores(data, opinion_scores(manifest, target, redo))
    names = parts_of(manifest, target, redo)
    return dict(zip(names, np.split(scores, len(names)), strict=True))


# --------------------------------------------------------------------------------- samples


def next_places(manifest: RunManifest, sample: int) -> Ids:
    """Places in the next chunk, and in its score block, that the opinion is about."""
    chunk = manifest.config.router.chunk_sequences
    return _drawn(manifest, sample, np.arange(chunk), "next")


def slice_places(manifest: RunManifest, target: UnitKey, sample: int) -> Ids:
    """Places in a slice, or in the held-out split, that the opinion is about."""
    if target.index == HELDOUT:
        count = manifest.heldout_sequences
    else:
        start, stop = manifest.shard_range(target.index)
        count = stop - start
    return _drawn(manifest, sample, np.arange(count), "slice")


def router_sample(
    manifest: RunManifest, target: UnitKey, sample: int, share_ids: Ids
) -> RouterSample:
    """Draw the sequences of an opinion on a router's round; `share_ids` of its chunk are its."""
    nothing = np.zeros(0, dtype=np.int64)
    chunk = _chunk(manifest, target.index - 1)
    rest = np.setdiff1d(chunk, share_ids)
    last = target.index == manifest.config.router.rounds
    public = np.arange(manifest.heldout_sequences)
    return RouterSample(
        nothing if last else _chunk(manifest, target.index)[next_places(manifest, sample)],
        _drawn(manifest, sample, public, "public") if public.size else nothing,
        _drawn(manifest, sample, np.sort(share_ids), "own"),
        # A small corpus may be all in the share: then the two gains are the same.
        _drawn(manifest, sample, rest if rest.size else chunk, "rest"),
    )


def expert_sample(
    manifest: RunManifest, target: UnitKey, sample: int, segment_ids: Ids, routed_N: NDArray
) -> ExpertSample:
    """Draw the sequences of an opinion on an expert.

    `routed_N`: the expert that each held-out sequence is routed to; empty if there are none.
    """
    lone = manifest.experts == 1
    mine_N = routed_N == target.expert
    own, other = np.flatnonzero(mine_N), np.flatnonzero(~mine_N)
    heldout = own.size > 0 and (lone or other.size > 0)
    if not heldout:
        own = np.sort(segment_ids)
        other = np.setdiff1d(np.arange(manifest.train_sequences), segment_ids)
    return ExpertSample(
        heldout,
        _drawn(manifest, sample, own, "own"),
        _drawn(manifest, sample, other if other.size else own, "other"),
        _drawn(manifest, sample, np.sort(segment_ids), "whole"),
    )


def _chunk(manifest: RunManifest, number: int) -> Ids:
    config = manifest.config
    chunk = config.router.chunk_sequences
    return chunk_ids(config.run.seed, manifest.train_sequences, number, chunk)


def _drawn(manifest: RunManifest, sample: int, ids: Ids, part: str) -> Ids:
    count = manifest.config.audit.sample_sequences
    return training_order(sample, ids, count, "audit", part)
