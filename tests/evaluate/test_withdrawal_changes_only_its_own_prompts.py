"""After an expert left, only texts that it would have won go elsewhere; the rest is as before."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_mixture import EXPERTS, PREFIX, change_manifest

from smalltalk_fed.evaluate.generate import Sampling, generate
from smalltalk_fed.evaluate.heldout import heldout_of_tokens
from smalltalk_fed.evaluate.mixture import Mixture
from smalltalk_fed.evaluate.perplexity import evaluate
from smalltalk_fed.mixture.withdrawing import take_out

ROWS = 24


@pytest.fixture(scope="module")
def left(whole_mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Mixture]:
    """The mixture after each one of its experts left."""
    found = []
    for expert in range(EXPERTS):
        folder = tmp_path_factory.mktemp("left") / str(expert)
        shutil.copytree(whole_mixture, folder)
        take_out(folder, {expert: "ours again"})
        found.append(Mixture.load(folder))
    return found


@contextlib.contextmanager
def priced(mixture: Mixture, prices: list[float]) -> Iterator[None]:
    """With these prices for a while."""
    before, mixture.prices_E = mixture.prices_E, np.asarray(prices)
    try:
        yield
    finally:
        mixture.prices_E = before


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), prices=st.lists(st.floats(-30, 30), min_size=3, max_size=3))
def test_only_texts_that_it_would_have_won_go_elsewhere(
    whole_mixture: Path, left: list[Mixture], seed: int, prices: list[float]
) -> None:
    whole = Mixture.load(whole_mixture)
    vocabulary = whole.manifest.vocabulary
    tokens_NxM = np.random.default_rng(seed).integers(0, vocabulary, (ROWS, PREFIX))
    rows, ids = heldout_of_tokens(tokens_NxM).sequences, np.arange(ROWS)
    with priced(whole, prices):
        before_N = whole.route_rows(rows, ids)
    for gone, mixture in enumerate(left):
        with priced(mixture, prices):
            after_N = mixture.route_rows(rows, ids)
        others = before_N != gone
        assert np.array_equal(after_N[others], before_N[others])
        assert gone not in after_N


def test_a_text_that_it_won_goes_to_the_next_best_of_the_others(left: list[Mixture]) -> None:
    whole_choice = {}
    for words in ("one two three four", "red, green, blue; white", "(1 + 2) * 34 = 102"):
        for gone, mixture in enumerate(left):
            choice = mixture.route(mixture.tokenizer.encode(words).ids)
            assert choice.scores_E is not None
            assert choice.scores_E[gone] is None
            assert choice.rows()[gone]["note"] == "withdrawn"
            scores = {e: s for e, s in enumerate(choice.scores_E) if s is not None}
            assert choice.expert == max(scores, key=lambda e: scores[e])
            whole_choice.setdefault(words, {})[gone] = scores
    for by_gone in whole_choice.values():  # the others' scores are the same whoever left
        for expert in range(EXPERTS):
            assert len({s[expert] for gone, s in by_gone.items() if gone != expert}) == 1


def test_what_the_others_write_is_the_same(whole_mixture: Path, left: list[Mixture]) -> None:
    whole, sampling = Mixture.load(whole_mixture), Sampling(12, seed=4)
    for words in ("one two three four", "red, green, blue; white"):
        choice, pieces = generate(whole, words, sampling)
        text = "".join(pieces)
        for gone, mixture in enumerate(left):
            if gone == choice.expert:
                continue
            again, pieces = generate(mixture, words, sampling)
            assert (again.expert, "".join(pieces)) == (choice.expert, text)


def test_it_is_evaluated_without_it(mixture: Path, corpus: Path) -> None:
    change_manifest(mixture, prices=[-1e6, 0.0, 0.0])  # it would have won everything
    take_out(mixture, {0: "ours again"})
    report = evaluate(mixture, corpus=corpus, device="cpu")
    counts = [row.sequences for row in report.experts]
    assert counts[0] == 0
    assert sum(counts) == report.sequences > 0
