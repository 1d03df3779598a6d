"""Perplexity of a mixture on held-out text, and of a dense model on the very same.

Rules: every sequence is routed by its prefix, once, among the experts that are present, and
only the chosen expert is run on it, unless the oracle is asked for; the dense model sees the
same sequences in the same precision. The figures are `report`'s part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smalltalk_fed.data.tokenizer import token_bytes
from smalltalk_fed.errors import DataError
from smalltalk_fed.evaluate.federated import RelayedExperts, relayed_sums
from smalltalk_fed.evaluate.heldout import Heldout, Rows, heldout_of_corpus, heldout_of_text
from smalltalk_fed.evaluate.mixture import Mixture, load_dense
from smalltalk_fed.evaluate.report import EvaluationReport, SequenceSums, Shape, make_report
from smalltalk_fed.train.device import choose_device
from smalltalk_fed.train.scoring import sequence_losses

BATCH_SEQUENCES = 32

OnProgress = Callable[[float, str], None]  # fraction 0..1, what is being done


def evaluate(
    mixture_folder: Path,
    *,
    text: Sequence[Path] = (),
    corpus: Path | None = None,
    dense: Path | None = None,
    oracle: bool = False,
    device: str = "auto",
    threads: int | None = None,
    on_progress: OnProgress | None = None,
    elsewhere: RelayedExperts | None = None,
) -> EvaluationReport:
    """Evaluate a mixture folder on `text` files or on the held-out part of `corpus`.

    `elsewhere`: where experts that are not in the folder are asked. `oracle` runs every expert on
    every sequence, for the ceiling of routing and its floor.

    Raises:
        MixtureError: the folder is no usable mixture.
        DataError: the text is unreadable, too short or another tokenizer's.
        PeerError, WorldError: an expert elsewhere does not answer.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    federated = elsewhere is not None
    mixture = Mixture.load(mixture_folder, choose_device(device), federated=federated)
    if corpus is not None:
        heldout = heldout_of_corpus(corpus, mixture.tokenizer_sha256)
    else:
        heldout = heldout_of_text(text, mixture.tokenizer_folder, mixture.sequence_tokens)
    return evaluate_loaded(mixture, heldout, dense, oracle, on_progress, elsewhere)


def evaluate_loaded(
    mixture: Mixture,
    heldout: Heldout,
    dense: Path | None = None,
    oracle: bool = False,
    on_progress: OnProgress | None = None,
    elsewhere: RelayedExperts | None = None,
) -> EvaluationReport:
    """The same for a loaded mixture and held-out sequences at hand."""
    shape = Shape(heldout.sequence_tokens, mixture.prefix_tokens)
    if shape.suffix < 1:
        raise DataError(
            f"sequences of {shape.sequence_tokens} tokens have nothing after the prefix of "
            f"{shape.prefix_tokens} that the routers read; give longer ones."
        )
    progress = _Progress(on_progress, mixture, len(heldout), oracle, dense is not None)
    ids = np.arange(len(heldout))
    progress.tell("routing")
    experts_N = mixture.route_rows(heldout.sequences, ids)
    progress.add(len(ids) * 0.2)

    prefix_N, suffix_N = np.zeros(len(ids)), np.zeros(len(ids))
    every = np.full((len(ids), len(mixture.present)), np.nan) if oracle else None
    for column, expert in enumerate(mixture.present):
        here = ids if oracle else np.flatnonzero(experts_N == expert)
        if not len(here):
            continue
        progress.tell(f"expert {expert}")
        if elsewhere is not None and expert not in mixture.here:
            sums = relayed_sums(elsewhere, expert, heldout, here, mixture.prefix_tokens)
        else:
            sums = _sums(mixture.expert(expert), heldout.sequences, here, mixture)
            mixture.forget(expert)  # large experts need not stand in memory side by side
        mine = np.flatnonzero(experts_N[here] == expert)
        prefix_N[here[mine]], suffix_N[here[mine]] = (
            sums.prefix_nll_N[mine],
            sums.suffix_nll_N[mine],
        )
        if every is not None:
            every[:, column] = sums.suffix_nll_N
        progress.add(len(here))

    dense_sums = None
    if dense is not None:
        progress.tell("dense model")
        model = load_dense(dense, mixture)
        dense_sums = _sums(model, heldout.sequences, ids, mixture)
    progress.tell("done")
    return make_report(
        shape,
        experts_N,
        mixture.experts,
        SequenceSums(prefix_N, suffix_N),
        dense_sums,
        every,
        predicted_bytes(mixture, heldout),
        heldout.labels_N,
        heldout.label_names,
    )


def predicted_bytes(mixture: Mixture, heldout: Heldout) -> int | None:
    """UTF-8 bytes that all predicted tokens stand for; None if the tokenizer can't say."""
    try:
        bytes_V = token_bytes(mixture.tokenizer)
    except DataError:
        return None
    total = 0
    for start in range(0, len(heldout), 4096):
        ids = np.arange(start, min(start + 4096, len(heldout)))
        total += int(bytes_V[heldout.sequences.rows(ids)[:, 1:]].sum())
    return total


def _sums(model: nn.Module, rows: Rows, ids: np.ndarray, mixture: Mixture) -> SequenceSums:
    prefix_N, suffix_N = sequence_losses(
        model,
        rows,
        ids,
        mixture.prefix_tokens,
        batch_sequences=BATCH_SEQUENCES,
        device=mixture.device,
    )
    return SequenceSums(prefix_N, suffix_N)


class _Progress:
    """Sequences done out of those to do."""

    def __init__(
        self, tell: OnProgress | None, mixture: Mixture, count: int, oracle: bool, dense: bool
    ) -> None:
        self._tell = tell or (lambda _fraction, _doing: None)
        passes = (len(mixture.present) if oracle else 1) + dense + 0.2
        self._total, self._done = max(1.0, count * passes), 0.0

    def add(self, sequences: float) -> None:
        self._done += sequences

    def tell(self, doing: str) -> None:
        self._tell(min(1.0, self._done / self._total), doing)
