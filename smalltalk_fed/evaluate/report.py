"""From sums of negative log-likelihoods to the figures of an evaluation. Pure numpy.

Rules: perplexities are of natural logarithms over predicted tokens; the first token of a
sequence is predicted by nobody. The *suffix* figure counts the tokens after the prefix,
which the router has not seen, and is the honest one; *all* counts every predicted token
(arXiv 2410.03529 leaves open which it reports). Mixture and dense model are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SequenceSums:
    """Negative log-likelihood in nats of every sequence: of its prefix, and of the rest."""

    prefix_nll_N: np.ndarray  # tokens 2..M
    suffix_nll_N: np.ndarray  # tokens M+1..S

    def take(self, ids: np.ndarray) -> SequenceSums:
        """Those of some sequences."""
        return SequenceSums(self.prefix_nll_N[ids], self.suffix_nll_N[ids])


@dataclass(frozen=True)
class Figures:
    """One model's (or mixture's) figures over all sequences."""

    suffix_ppl: float
    all_ppl: float
    bits_per_byte: float | None  # None: the tokenizer's tokens stand for no definite bytes


@dataclass(frozen=True)
class ExpertFigures:
    """One expert on the sequences routed to it; the dense model on the same."""

    expert: int
    sequences: int
    tokens: int
    suffix_ppl: float | None  # None: no sequence came here
    dense_suffix_ppl: float | None
    domains: dict[str, int]  # sequences of each label, where there are labels


@dataclass(frozen=True)
class DomainFigures:
    """The sequences of one label."""

    domain: str
    sequences: int
    suffix_ppl: float
    dense_suffix_ppl: float | None
    experts: list[int]  # sequences by expert


@dataclass(frozen=True)
class EvaluationReport:
    """What `smalltalk evaluate` says."""

    sequences: int
    sequence_tokens: int
    prefix_tokens: int
    mixture: Figures
    dense: Figures | None
    ratio_suffix: float | None  # mixture over dense; below 1 the mixture is better
    oracle_suffix_ppl: float | None  # the best expert of each sequence: a ceiling for routing
    random_suffix_ppl: float | None  # experts drawn at random, in expectation
    experts: list[ExpertFigures]
    domains: list[DomainFigures]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Shape:
    """What every sequence has."""

    sequence_tokens: int
    prefix_tokens: int

    @property
    def suffix(self) -> int:
        """Predicted tokens after the prefix."""
        return self.sequence_tokens - self.prefix_tokens

    @property
    def predicted(self) -> int:
        """Predicted tokens: all but the first."""
        return self.sequence_tokens - 1


def figures(sums: SequenceSums, shape: Shape, bytes_total: int | None) -> Figures:
    """Figures over all sequences; `bytes_total` is what their predicted tokens stand for."""
    count = len(sums.suffix_nll_N)
    suffix = math.fsum(sums.suffix_nll_N)
    everything = suffix + math.fsum(sums.prefix_nll_N)
    return Figures(
        suffix_ppl=_ppl(suffix, count * shape.suffix),
        all_ppl=_ppl(everything, count * shape.predicted),
        bits_per_byte=everything / bytes_total / math.log(2) if bytes_total else None,
    )


def make_report(
    shape: Shape,
    experts_N: np.ndarray,
    experts: int,
    mixture: SequenceSums,
    dense: SequenceSums | None = None,
    every_suffix_nll_NxE: np.ndarray | None = None,
    bytes_total: int | None = None,
    labels_N: np.ndarray | None = None,
    label_names: Sequence[str] = (),
) -> EvaluationReport:
    """Put all together.

    `experts_N`: the expert each sequence was routed to; `every_suffix_nll_NxE`: every
    (present) expert's suffix loss, for the oracle and random routing.
    """
    ours = figures(mixture, shape, bytes_total)
    theirs = figures(dense, shape, bytes_total) if dense else None
    oracle = chance = None
    if every_suffix_nll_NxE is not None:
        count = len(experts_N) * shape.suffix
        oracle = _ppl(math.fsum(every_suffix_nll_NxE.min(axis=1)), count)
        chance = _ppl(math.fsum(every_suffix_nll_NxE.mean(axis=1)), count)
    labels = labels_N if label_names else None
    return EvaluationReport(
        sequences=len(experts_N),
        sequence_tokens=shape.sequence_tokens,
        prefix_tokens=shape.prefix_tokens,
        mixture=ours,
        dense=theirs,
        ratio_suffix=ours.suffix_ppl / theirs.suffix_ppl if theirs else None,
        oracle_suffix_ppl=oracle,
        random_suffix_ppl=chance,
        experts=[
            _expert(e, np.flatnonzero(experts_N == e), shape, mixture, dense, labels, label_names)
            for e in range(experts)
        ],
        domains=_domains(experts_N, experts, shape, mixture, dense, labels, label_names),
    )


def _expert(
    expert: int,
    ids: np.ndarray,
    shape: Shape,
    mixture: SequenceSums,
    dense: SequenceSums | None,
    labels_N: np.ndarray | None,
    names: Sequence[str],
) -> ExpertFigures:
    counts: dict[str, int] = {}
    if labels_N is not None:
        found, sizes = np.unique(labels_N[ids], return_counts=True)
        counts = {names[int(f)]: int(n) for f, n in zip(found, sizes, strict=True)}
    return ExpertFigures(
        expert=expert,
        sequences=len(ids),
        tokens=len(ids) * shape.sequence_tokens,
        suffix_ppl=_suffix_ppl(mixture, ids, shape),
        dense_suffix_ppl=_suffix_ppl(dense, ids, shape),
        domains=counts,
    )


def _domains(
    experts_N: np.ndarray,
    experts: int,
    shape: Shape,
    mixture: SequenceSums,
    dense: SequenceSums | None,
    labels_N: np.ndarray | None,
    names: Sequence[str],
) -> list[DomainFigures]:
    found = []
    for label, name in enumerate(names if labels_N is not None else ()):
        ids = np.flatnonzero(labels_N == label)
        ppl = _suffix_ppl(mixture, ids, shape)
        if ppl is None:
            continue
        by_expert = np.bincount(experts_N[ids], minlength=experts).tolist()
        theirs = _suffix_ppl(dense, ids, shape)
        found.append(DomainFigures(name, len(ids), ppl, theirs, by_expert))
    return found


def _suffix_ppl(sums: SequenceSums | None, ids: np.ndarray, shape: Shape) -> float | None:
    if sums is None or not len(ids):
        return None
    return _ppl(math.fsum(sums.suffix_nll_N[ids]), len(ids) * shape.suffix)


def _ppl(nll: float, tokens: int) -> float:
    return math.exp(min(nll / tokens, 700.0))  # below the largest float, so that it stays JSON
