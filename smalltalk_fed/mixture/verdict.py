"""Is a result good, by an auditor's opinion? Rules and limits, each with its reason.

A `Finding` says what is wrong in one clause, or nothing, and the figures that it rests on.
Rules: numbers only, no blobs and no votes (`host.judge` has those); per-token figures are by
the M - 1 predicted tokens of a prefix. Limits come from measurements in docs/experiments.md
("Checks on results") and are wide: a finding of one auditor alone convicts nobody, but it
costs another audit.

What a router's round is held to: its score block is what its parameters give; it is not much
worse on public text. What it was trained on, a look at its gains can't prove: if they are less
on its share than its peers' are, or than on the rest, that is a `doubt`, and the round is
trained again. What comes of that is held against what was handed in, sequence by sequence: an
honest router is the same up to what rounding becomes in a training. A slice's division
must be the best one under the loads that the sample has: any part of an optimal assignment is
optimal for its own loads, so no prices are needed. An expert guesses better than uniformly, is
about as good as its peers, and is no worse on text the more its router prefers it, compared at
the same difficulty: what all routers together find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import HELDOUT, UnitKey
from smalltalk_fed.mixture.assignment import assign
from smalltalk_fed.mixture.audit import Scores

# Largest difference, in nats a token, of the same score on two machines. Sums differ by the
# root of the number of tokens more often than by the number; this is the number, for safety.
TOLERANCE_NATS = {"float32": 0.002, "bfloat16": 0.04}
STEP_NATS = 1 / 16  # of the rounding of both score blocks
# How much worse on text of all kinds a router may be after a round, in nats a token.
PUBLIC_LOSS_NATS = 0.5
# Part of the rest's gain that the share's must reach, give or take so many standard errors,
# or it is doubted. While everything is new all text gains, and what a router knows already least.
SHARE_PART, SHARE_ERRORS = 0.9, 2.0
# Part of what a random division loses that a greedy one may lose; the optimal one loses none.
GREEDY_LOSS = 0.5
# Standard errors by which an expert's scores may fall as its router's preference rises.
EXPERT_ERRORS = 4.0
# By how much worse than guessing uniformly an expert may be, nats a token: one that was hardly
# trained, or on noise, guesses, and a sample has its own chance.
GUESSING_MARGIN_NATS = 0.25
# By how much an expert may be worse than its router on its own text and, then, further behind
# its peers' median, nats a token, beside so many of their spreads. Honest experts of one run
# differed by 0.35.
BEHIND_ROUTER_NATS, PEER_MARGIN_NATS, PEER_SPREADS = 0.25, 0.5, 4.0
# Part of the usual lead of a share's gain that a router's must reach, give or take so many
# standard errors, or it is doubted: what it was trained on it knows better.
PEER_PART, PEER_ERRORS = 0.5, 2.0
# How far a router's scores may typically be (root mean square, nats a token) from those of the
# same round trained again on another machine, by the run's `compute.train_dtype`. In bf16, which
# 'auto' means on some machines, an honest round was 0.12 off, where a training was at a fork.
REDO_APART_NATS = {"float32": 0.05, "auto": 0.2, "bfloat16": 0.2}
PEERS = 3  # with fewer there is no telling who is the odd one


@dataclass(frozen=True)
class Finding:
    """What an opinion says of a result; no `fault`: it is good.

    `doubt`: the fault is no proof, and only training the round again can tell. `redone`: it is
    what came of that.
    """

    fault: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    doubt: bool = False
    redone: bool = False


def tolerance_nats(manifest: RunManifest) -> float:
    """By how much two honest machines' scores of a prefix may differ."""
    config = manifest.config
    tokens = config.sequence.prefix - 1
    return TOLERANCE_NATS[config.compute.score_dtype] * tokens + STEP_NATS


def redo_limit_nats(manifest: RunManifest) -> float:
    """How far a router may typically be from what its share makes, nats a token."""
    return REDO_APART_NATS[manifest.config.compute.train_dtype]


def agree(manifest: RunManifest, one: Mapping[str, Scores], other: Mapping[str, Scores]) -> bool:
    """Whether two opinions are the same within tolerance: every score that both have.

    Of rounds that were trained again the typical difference counts, not the largest.
    """
    limit, tokens = tolerance_nats(manifest), manifest.config.sequence.prefix - 1
    for name in one.keys() & other.keys():
        apart_K = one[name].astype(np.float64) - other[name]
        if name.endswith("_redo"):
            if math.sqrt(float(np.mean(apart_K**2))) > redo_limit_nats(manifest) * tokens:
                return False
        elif float(np.abs(apart_K).max()) > limit:
            return False
    return True


def router_finding(
    manifest: RunManifest,
    opinion: Mapping[str, Scores],
    said_K: Scores | None,
    peers: Mapping[int, Mapping[str, float]],
) -> Finding:
    """Judge a router's round: by what came of it again if the opinion has that, else by its gains.

    `said_K`: its score block at the opinion's places, if it has one; `peers`: the figures of
    other routers' late rounds that were found good.
    """
    tokens = manifest.config.sequence.prefix - 1
    gains = {
        name: opinion[f"{name}_after"].astype(np.float64) - opinion[f"{name}_before"]
        for name in ("public", "own", "rest")
        if f"{name}_after" in opinion
    }
    figures = {f"{name}_gain": float(gain.mean()) / tokens for name, gain in gains.items()}
    if said_K is not None:
        errors = np.abs(said_K - opinion["next"])
        figures["scores_off_nats"] = float(errors.max())
        bad = int(np.count_nonzero(errors > tolerance_nats(manifest)))
        if bad:
            why = f"{bad} of {len(errors)} scores are not its router's, by up to {errors.max():.1f}"
            return Finding(f"{why} nats", figures)
    if "rest" in gains:
        figures["share_lead"] = figures["own_gain"] - figures["rest_gain"]
        errors = (_standard_error(gains[name]) for name in ("own", "rest"))
        figures["share_error"] = math.hypot(*errors) / tokens
    if "own_redo" in opinion:
        return _redone_finding(opinion, tokens, figures, redo_limit_nats(manifest))
    for name, text in (("public", "held-out text"), ("own", "its own share")):
        if figures.get(f"{name}_gain", 0.0) < -PUBLIC_LOSS_NATS:
            lost = -figures[f"{name}_gain"]
            return Finding(f"the router got worse on {text} by {lost:.2f} nats a token", figures)
    doubt = _lead_doubt(figures, peers)
    return Finding(doubt, figures, doubt=bool(doubt))


def _lead_doubt(figures: dict[str, float], peers: Mapping[int, Mapping[str, float]]) -> str:
    """Why a router's gains look as if it was trained on other text; empty if they don't."""
    if "share_lead" not in figures:
        return ""
    lead, error = figures["share_lead"], figures["share_error"]
    if lead < (SHARE_PART - 1) * max(0.0, figures["rest_gain"]) - SHARE_ERRORS * error:
        return f"the router gained {-lead:.3f} nats a token less on its share than on the rest"
    others = [float(known["share_lead"]) for known in peers.values() if "share_lead" in known]
    usual = float(np.median(others)) if len(others) >= PEERS else 0.0
    if usual > 0 and lead < PEER_PART * usual - PEER_ERRORS * error:
        why = f"the router gained {lead:.3f} nats a token more on its share than on the rest"
        return f"{why}, where others gained {usual:.3f}"
    return ""


def _redone_finding(
    opinion: Mapping[str, Scores], tokens: int, figures: dict[str, float], limit: float
) -> Finding:
    """Hold a router against the one that its share makes, sequence by sequence.

    `redo_apart`: the typical difference of their scores (root mean square), nats a token.
    """
    apart_2K = np.concatenate(
        [
            opinion[f"{name}_after"].astype(np.float64) - opinion[f"{name}_redo"]
            for name in ("own", "rest")
            if f"{name}_redo" in opinion
        ]
    )
    distance = figures["redo_apart"] = math.sqrt(float(np.mean(apart_2K**2))) / tokens
    if distance > limit:
        why = f"the router is {distance:.3f} nats a token from what its share makes of it"
        return Finding(why, figures, redone=True)
    return Finding("", figures)


def slice_finding(
    manifest: RunManifest,
    target: UnitKey,
    opinion: Mapping[str, Scores],
    expert_K: NDArray[np.int32],
) -> Finding:
    """Judge a slice's division; `expert_K`: whom the sample's sequences were given to."""
    scores_KxE = np.stack(list(opinion.values()), axis=1)
    given_K = scores_KxE[np.arange(len(expert_K)), expert_K].astype(np.float64)
    limit = 2 * tolerance_nats(manifest)
    if target.index == HELDOUT:
        lost_K = scores_KxE.max(axis=1) - given_K
        bad = int(np.count_nonzero(lost_K > limit))
        figures = {"lost_nats": float(lost_K.mean())}
        if bad:
            why = f"{bad} of {len(lost_K)} held-out sequences are not with their best router"
            return Finding(why, figures)
        return Finding("", figures)
    load_E = np.bincount(expert_K, minlength=manifest.experts)
    best_N = assign(scores_KxE, load_E, "optimal").expert_N
    best_K = scores_KxE[np.arange(len(best_N)), best_N]
    lost = float(best_K.mean(dtype=np.float64) - given_K.mean())
    by_chance = float(scores_KxE.mean(axis=0, dtype=np.float64) @ load_E) / len(expert_K)
    chance_lost = float(best_K.mean(dtype=np.float64)) - by_chance
    figures = {"lost_nats": lost, "lost_by_chance_nats": chance_lost}
    if manifest.config.assignment.method != "optimal":
        limit += GREEDY_LOSS * chance_lost
    if lost > limit:
        why = f"the division loses {lost:.1f} nats a sequence; one by chance loses"
        return Finding(f"{why} {chance_lost:.1f}", figures)
    return Finding("", figures)


def expert_finding(
    manifest: RunManifest,
    opinion: Mapping[str, Scores],
    peers: Mapping[int, Mapping[str, float]],
) -> Finding:
    """Judge a finished expert; `peers`: the figures of other experts that were found good."""
    tokens = manifest.config.sequence.prefix - 1
    leads = {
        name: opinion[f"{name}_expert"].astype(np.float64) - opinion[f"{name}_router"]
        for name in ("own", "other")
        if f"{name}_expert" in opinion
    }
    figures = {f"{name}_lead": float(lead.mean()) / tokens for name, lead in leads.items()}
    figures["loss_nats"] = -float(opinion["whole"].mean(dtype=np.float64)) / tokens
    if figures["loss_nats"] > math.log(manifest.vocabulary) + GUESSING_MARGIN_NATS:
        why = f"the expert's loss on its segment is {figures['loss_nats']:.2f} nats a token"
        return Finding(f"{why}, worse than guessing", figures)
    if "other" in leads:
        slope, error = _preference(manifest.experts, opinion)
        figures["specialised"], figures["specialised_error"] = slope, error
        if slope < -EXPERT_ERRORS * error:
            why = f"the expert loses {-slope:.2f} nats for each by which its router prefers a text"
            return Finding(why, figures)
    others = [float(known["own_lead"]) for known in peers.values() if "own_lead" in known]
    if len(others) >= PEERS:
        behind = float(np.median(others)) - figures["own_lead"]
        spread = float(np.median(np.abs(np.array(others) - np.median(others))))
        worse = -figures["own_lead"]
        if worse > BEHIND_ROUTER_NATS and behind > PEER_MARGIN_NATS + PEER_SPREADS * spread:
            why = f"the expert is worse than its router by {worse:.2f} nats a token"
            return Finding(f"{why}, and {behind:.2f} behind its peers", figures)
    return Finding("", figures)


def _preference(experts: int, opinion: Mapping[str, Scores]) -> tuple[float, float]:
    """How an expert's scores change with its router's preference, and the standard error.

    Least squares on a constant, the mean of all routers (how hard the text is) and its
    router's score less that mean. The mean of all is what makes it fair: text was sent to
    the expert because its router scored high, by knowledge or by chance, and a baseline of
    that router alone would take chance for knowledge that the expert lacks.
    """
    expert, router, others = (
        np.concatenate([opinion[f"{text}_{name}"] for text in ("own", "other")]).astype(np.float64)
        for name in ("expert", "router", "others")
    )
    hard = (router + (experts - 1) * others) / experts
    columns = np.stack([np.ones_like(hard), hard - hard.mean(), router - hard], axis=1)
    inverse = np.linalg.pinv(columns.T @ columns)
    weights = inverse @ columns.T @ expert
    rest = expert - columns @ weights
    variance = float(rest @ rest) / max(1, len(rest) - 3)
    return float(weights[2]), math.sqrt(variance * float(inverse[2, 2]))


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std()) / math.sqrt(len(values))
