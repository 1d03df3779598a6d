"""Experts that train where their text is: how long, on what, and what is said of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.silos import by_kind, private_run

from smalltalk_fed.config.manifest import make_private_manifest
from smalltalk_fed.errors import DataError
from smalltalk_fed.model.state import state_from
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.scoring import sequence_losses
from smalltalk_fed.train.silo_expert import (
    JoinedRows,
    silo_order,
    silo_plan,
    train_silo_expert,
)

CPU = torch.device("cpu")


def with_public_text(corpus, share, **changes):
    config = private_run(2, **changes).config
    private = config.private.model_copy(update={"public_share": share})
    config = config.model_copy(update={"private": private})
    tokenizer = corpus.manifest.tokenizer_sha256
    return make_private_manifest(
        config, tokenizer, corpus.manifest.vocabulary, "r", 0, corpus.manifest
    )


def test_steps_follow_the_share_of_all_text_and_are_the_mean_for_an_even_one():
    manifest = private_run(2)
    assert [silo_plan(manifest, CPU, share).steps for share in (0.5, 0.75, 0.25)] == [12, 18, 6]
    assert silo_plan(manifest, CPU, 1e-9).steps == 1
    equal = private_run(2, private={"steps": "equal"})
    assert [silo_plan(equal, CPU, share).steps for share in (0.5, 0.75, 0.25)] == [12, 12, 12]


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.integers(1, 5000))
def test_all_steps_together_are_what_they_would_be_with_equal_shares(parts, steps):
    manifest = private_run(len(parts), expert={"steps": steps})
    shares = np.array(parts) / sum(parts)
    taken = [silo_plan(manifest, CPU, float(share)).steps for share in shares]
    assert abs(sum(taken) - steps * len(parts)) <= len(parts)


@given(st.integers(1, 30), st.integers(0, 30), st.floats(0, 0.99), st.integers(1, 120))
def test_an_order_has_the_public_part_and_uses_each_sequence_equally_often(
    own, public, share, count
):
    manifest = private_run(2)
    private = manifest.config.private.model_copy(update={"public_share": share})
    config = manifest.config.model_copy(update={"private": private})
    manifest = manifest.model_copy(update={"config": config})
    public_ids = 1000 + np.arange(public)
    wanted = round(share * count)
    if wanted and not public:
        with pytest.raises(DataError, match="no public text"):
            silo_order(manifest, 0, np.arange(own), public_ids, count)
        return
    order = silo_order(manifest, 0, np.arange(own), public_ids, count)
    assert len(order) == count
    assert (order >= 1000).sum() == wanted
    for ids in (np.arange(own), public_ids):
        used = [int((order == i).sum()) for i in ids]
        assert not used or max(used) - min(used) <= 1


def test_an_expert_without_text_of_its_own_is_refused():
    with pytest.raises(DataError, match="no own text"):
        silo_order(private_run(2), 0, np.empty(0, np.int64), np.empty(0, np.int64), 5)


def test_joined_rows_are_the_own_ones_and_then_the_public_ones(corpus):
    own, public = by_kind(corpus)[0].train, corpus.train
    joined = JoinedRows(own, public)
    ids = np.array([50, 3, 48, 3, 140, 0])
    expected = [
        own.rows([i])[0] if i < len(own) else public.rows(np.array([i - len(own)]))[0] for i in ids
    ]
    assert (joined.rows(ids) == expected).all()
    assert (joined.rows(ids, 5) == np.array(expected)[:, :5]).all()
    assert joined.rows(np.array([1, 2])).shape == (2, 16)


def test_an_expert_learns_its_silos_text_and_says_nothing_of_few_sequences(corpus, tmp_path):
    silo = by_kind(corpus)[0]
    manifest = private_run(2, private={"count_floor": 24})
    path, figures = train_silo_expert(manifest, silo, 0, np.arange(48), 0.5, tmp_path)
    again, _ = train_silo_expert(manifest, silo, 0, np.arange(48)[::-1], 0.5, tmp_path / "again")
    assert path.read_bytes() == again.read_bytes()
    assert figures["steps"] == 12
    assert figures["loss_mean"] < 3.4  # log 32 is 3.47
    # A batch is of 8, the floor 24: no loss of single steps.
    assert not any(name.startswith("loss_") and name != "loss_mean" for name in figures)
    fine = private_run(2, private={"count_floor": 8})
    _, figures = train_silo_expert(fine, silo, 0, np.arange(48), 0.5, tmp_path / "fine")
    assert sum(name.startswith("loss_at_") for name in figures) == 12
    assert not {"loss_first", "loss_last"} & set(figures)


@pytest.mark.parametrize(("floor", "said"), [(96, True), (97, False)])
def test_of_few_sequences_in_all_it_says_no_mean(corpus, tmp_path, floor, said):
    """12 steps of 8."""
    manifest = private_run(2, private={"count_floor": floor})
    _, figures = train_silo_expert(
        manifest, by_kind(corpus)[0], 0, np.arange(48), 0.5, tmp_path / str(floor)
    )
    assert {name for name in figures if "loss" in name} == ({"loss_mean"} if said else set())


def test_progress_has_no_losses(corpus, tmp_path):
    heard = []
    train_silo_expert(
        private_run(2),
        by_kind(corpus)[0],
        0,
        np.arange(48),
        0.5,
        tmp_path,
        on_progress=lambda fraction, figures: heard.append(figures),
    )
    assert heard
    assert not any("loss" in figures for figures in heard)


def test_public_text_is_learned_too(corpus, tmp_path):
    """An expert that never sees the other kind of text in its silo learns it from public text."""
    silo = by_kind(corpus)[0]
    losses = {}
    for share in (0.0, 0.5):
        manifest = (
            with_public_text(corpus, share, expert={"steps": 40})
            if share
            else private_run(2, expert={"steps": 40})
        )
        path, _ = train_silo_expert(
            manifest,
            silo,
            0,
            np.arange(48),
            0.5,
            tmp_path / str(share),
            public=corpus.train if share else None,
            public_ids=np.arange(1, 96, 2) if share else None,
        )
        model = build_expert(manifest, "expert", 0)
        state_from(model, path)
        other = np.arange(1, 20, 2)
        losses[share] = sequence_losses(model, corpus.heldout, other, 8, batch_sequences=16)[1]
    assert losses[0.5].mean() < losses[0.0].mean() - 2
