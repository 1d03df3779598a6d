"""Scores and losses of sequences against log-softmax over all logits."""

import numpy as np
import pytest
import torch

from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train import scoring
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.scoring import score, score_one, sequence_losses

SHAPE = ModelShape(hidden=16, layers=2, heads=2, feed_forward=32)
IDS = np.array([3, 95, 0, 17, 3, 44, 60])


@pytest.fixture(scope="module")
def routers():
    models = [build_model(SHAPE, 32, 16, bytes([e])) for e in range(3)]
    with torch.no_grad():
        for model in models:
            for weight in model.parameters():
                weight *= 8
    return models


def _naive_losses(model, tokens):
    with torch.no_grad():
        chances = model.double()(tokens).logits[:, :-1].log_softmax(-1)
    model.float()
    return -chances.gather(2, tokens[:, 1:, None])[:, :, 0]


def _tokens(corpus, length):
    return torch.from_numpy(corpus.train.rows(IDS, length).astype(np.int64))


def test_a_score_is_the_log_likelihood_of_tokens_two_to_m(routers, corpus):
    scores_NxE = score(routers, corpus.train, IDS, 8, batch_sequences=3)
    assert scores_NxE.shape == (7, 3)
    assert scores_NxE.dtype == np.float32
    for expert, model in enumerate(routers):
        expected = -_naive_losses(model, _tokens(corpus, 8)).sum(dim=1)
        np.testing.assert_allclose(scores_NxE[:, expert], expected, rtol=1e-5)


def test_a_routers_scores_do_not_depend_on_who_is_scored_beside_it(routers, corpus):
    together = score(routers, corpus.train, IDS, 8, batch_sequences=4)
    for expert, model in enumerate(routers):
        alone = score_one(model, corpus.train, IDS, 8, batch_sequences=4)
        assert np.array_equal(alone, together[:, expert])


def test_scoring_in_bf16_is_near(routers, corpus):
    exact = score(routers, corpus.train, IDS, 8, batch_sequences=4)
    rough = score(routers, corpus.train, IDS, 8, batch_sequences=4, dtype="bfloat16")
    np.testing.assert_allclose(rough, exact, rtol=0.1)
    assert not np.array_equal(rough, exact)


def test_losses_of_prefix_and_suffix_are_sums_over_their_own_tokens(routers, corpus):
    prefix_N, suffix_N = sequence_losses(routers[0], corpus.train, IDS, 8, batch_sequences=4)
    losses = _naive_losses(routers[0], _tokens(corpus, 16))
    np.testing.assert_allclose(prefix_N, losses[:, :7].sum(dim=1), rtol=1e-5)
    np.testing.assert_allclose(suffix_N, losses[:, 7:].sum(dim=1), rtol=1e-5)


def test_a_prefix_as_long_as_the_sequence_leaves_no_suffix(routers, corpus):
    _, suffix_N = sequence_losses(routers[0], corpus.train, IDS, 16, batch_sequences=4)
    assert np.array_equal(suffix_N, np.zeros(7))


def test_no_sequences_have_no_scores(routers, corpus):
    assert score(routers, corpus.train, IDS[:0], 8, batch_sequences=4).shape == (0, 3)


def test_models_of_other_kinds_are_scored_by_their_logits(corpus):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)).eval()
    known = score_one(model, corpus.train, IDS, 8, batch_sequences=4)
    model.config.model_type = "unknown"
    by_logits = score_one(model, corpus.train, IDS, 8, batch_sequences=4)
    np.testing.assert_allclose(by_logits, known, rtol=1e-5)
    expected = -_naive_losses(model, _tokens(corpus, 8)).sum(dim=1)
    np.testing.assert_allclose(known, expected, rtol=1e-5)


def test_scoring_stops_when_told(routers, corpus):
    with pytest.raises(Stopped):
        score(routers, corpus.train, IDS, 8, batch_sequences=4, should_stop=lambda: True)
    with pytest.raises(Stopped):
        sequence_losses(
            routers[0], corpus.train, IDS, 8, batch_sequences=4, should_stop=lambda: True
        )


def test_parts_that_fit_the_cache_change_nothing(routers, corpus, monkeypatch):
    whole = score(routers, corpus.train, IDS, 8, batch_sequences=7)
    seen = []
    real = scoring.token_losses

    def watch(hidden, head, targets):
        seen.append(len(targets))
        return real(hidden, head, targets)

    monkeypatch.setattr(scoring, "token_losses", watch)
    monkeypatch.setattr(scoring, "CACHED_TOKENS", 20)
    parts = score(routers, corpus.train, IDS, 8, batch_sequences=7)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert max(seen) == 2 * 7
