"""Blocks of EM rounds in a silo: the shared regime's EM on the silo's own text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.silos import Picked, Silo, by_kind, private_run

from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.errors import DataError, Malformed
from smalltalk_fed.mixture.assignment import assign, equal_capacity, random_assignment
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, training_order
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import Stopped
from smalltalk_fed.train.scoring import score
from smalltalk_fed.train.silo import (
    block_count,
    block_rounds,
    build_silo_router,
    silo_block,
    silo_chunk_sequences,
)
from smalltalk_fed.train.units import router_plan

THREE = {"private": {"experts_of": [1, 2], "exchange_rounds": 2}}


@pytest.fixture(scope="module")
def silos(corpus):
    return by_kind(corpus)


@pytest.fixture(scope="module")
def whole_text(corpus):
    """A silo with both kinds of text."""
    return Silo(
        Picked(corpus.train, np.arange(len(corpus.train))),
        Picked(corpus.heldout, np.arange(len(corpus.heldout))),
    )


@given(st.integers(1, 200), st.integers(1, 50))
def test_blocks_divide_the_rounds_in_order(rounds, every):
    manifest = private_run(2, router={"rounds": rounds}, private={"exchange_rounds": every})
    of_blocks = [block_rounds(manifest, x) for x in range(1, block_count(manifest) + 1)]
    assert [r for block in of_blocks for r in block] == list(range(1, rounds + 1))
    assert all(len(block) == every for block in of_blocks[:-1])


def test_all_routers_start_from_the_same_weights():
    manifest = private_run(2)
    assert state_to_bytes(build_silo_router(manifest, 0, None)) == state_to_bytes(
        build_silo_router(manifest, 1, None)
    )


def test_a_silos_chunk_is_its_experts_part_of_the_runs_and_no_more_than_it_has():
    manifest = private_run(3, **THREE)
    assert silo_chunk_sequences(manifest, 0, 100) == 13  # a third of 40
    assert silo_chunk_sequences(manifest, 1, 100) == 26
    assert silo_chunk_sequences(manifest, 1, 20) == 20
    with pytest.raises(DataError, match="1 training sequences for 2 experts"):
        silo_chunk_sequences(manifest, 1, 1)


def test_a_block_is_the_plain_loop_of_e_and_m_steps(whole_text):
    """The naive twin: every round by hand, without blocks, scores of the routers as they are."""
    manifest = private_run(3, **THREE)
    seat, text = 1, whole_text
    experts = seat_experts(manifest.config)[seat]
    routers = {}
    for block in (1, 2):
        routers = silo_block(manifest, seat, text, block, routers).parameters

    by_hand = {}
    chunk = silo_chunk_sequences(manifest, seat, len(text.train))
    for round_ in (1, 2, 3):
        ids = chunk_ids(5, len(text.train), round_ - 1, chunk, "silo 1")
        if round_ == 1:
            place = random_assignment(
                chunk, equal_capacity(chunk, 2), derive_key(5, "first-assignment", "silo", 1)
            )
        else:
            models = [build_silo_router(manifest, e, by_hand[e]) for e in experts]
            scores = score(models, text.train, ids, 8, batch_sequences=16)
            place = assign(scores, equal_capacity(chunk, 2)).expert_N
        one_round = private_run(
            3, **{**THREE, "private": {**THREE["private"], "exchange_rounds": 1}}
        )
        after = _one_round(one_round, seat, text, round_, by_hand, ids, place)
        by_hand = after
    assert routers == by_hand


def _one_round(manifest, seat, text, round_, routers, ids, place):
    """Train each router of the seat on the ids that were given to it."""
    after = {}
    for position, expert in enumerate(seat_experts(manifest.config)[seat]):
        model = build_silo_router(manifest, expert, routers.get(expert))
        share = np.sort(ids[place == position])
        order = training_order(5, share, len(share), "router-order", expert, round_)
        device = next(model.parameters()).device
        plan = router_plan(manifest, len(share), device)
        train(model, text.train, order, plan=plan, device=device)
        after[expert] = state_to_bytes(model)
    return after


def test_where_blocks_end_changes_nothing(silos):
    outcomes = []
    for every in (1, 2, 3):
        manifest = private_run(2, private={"exchange_rounds": every})
        routers = {}
        for block in range(1, block_count(manifest) + 1):
            routers = silo_block(manifest, 0, silos[0], block, routers).parameters
        outcomes.append(routers)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_two_experts_of_a_silo_learn_two_kinds_of_text(whole_text):
    manifest = private_run(
        2,
        private={"experts_of": [2]},
        router={"rounds": 8, "chunk_sequences": 80},
    )
    routers = {}
    for block in range(1, block_count(manifest) + 1):
        routers = silo_block(manifest, 0, whole_text, block, routers).parameters
    models = [build_silo_router(manifest, e, data) for e, data in sorted(routers.items())]
    scores = score(models, whole_text.heldout, np.arange(20), 8, batch_sequences=16)
    won = scores.argmax(axis=1)
    apart = abs(won[::2].mean() - won[1::2].mean())
    assert apart >= 0.75  # 0: each has half of both kinds; 1: each has a kind


def test_a_block_that_was_cut_off_goes_on_from_its_finished_rounds(whole_text, tmp_path):
    manifest = private_run(2, private={"experts_of": [2], "exchange_rounds": 3})
    expected = silo_block(manifest, 0, whole_text, 1, {}).parameters
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        silo_block(
            manifest,
            0,
            whole_text,
            1,
            {},
            work_folder=tmp_path,
            should_stop=lambda: next(asked) > 16,  # in the third round
        )
    assert list(tmp_path.glob("block-*/round-*2.safetensors"))
    heard = []
    again = silo_block(
        manifest, 0, whole_text, 1, {}, work_folder=tmp_path, on_progress=lambda *x: heard.append(x)
    )
    assert again.parameters == expected
    assert again.figures["tokens"] < 3 * 40 * 8  # not all of it was done again
    assert heard
    assert not any("loss" in figures for _, figures in heard)


def test_who_stays_reads_no_more_than_before(whole_text):
    """Or it would win text of other silos for that alone."""
    manifest = private_run(3, **THREE)
    both = silo_block(manifest, 1, whole_text, 1, {})
    alone = silo_block(manifest, 1, whole_text, 1, {}, without=(2,))
    assert list(both.parameters) == [1, 2]
    assert list(alone.parameters) == [1]
    assert alone.figures["tokens"] == both.figures["tokens"] / 2


def test_rounds_with_an_expert_that_left_are_not_gone_on_from(whole_text, tmp_path):
    manifest = private_run(2, private={"experts_of": [2]})
    silo_block(manifest, 0, whole_text, 1, {}, work_folder=tmp_path)
    alone = silo_block(manifest, 0, whole_text, 1, {}, without=(1,), work_folder=tmp_path)
    assert alone.parameters == silo_block(manifest, 0, whole_text, 1, {}, without=(1,)).parameters


def test_damaged_rounds_are_done_again(silos, tmp_path):
    manifest = private_run(2)
    expected = silo_block(manifest, 0, silos[0], 1, {}, work_folder=tmp_path).parameters
    [file] = tmp_path.glob("block-*/round-*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = silo_block(manifest, 0, silos[0], 1, {}, work_folder=tmp_path)
    assert again.parameters == expected


def test_another_blocks_rounds_are_not_taken_for_this_ones(silos, tmp_path):
    manifest = private_run(2)
    first = silo_block(manifest, 0, silos[0], 1, {}, work_folder=tmp_path).parameters
    second = silo_block(manifest, 0, silos[0], 2, first, work_folder=tmp_path).parameters
    assert second == silo_block(manifest, 0, silos[0], 2, first).parameters != first


def test_what_a_block_says_is_of_the_whole_block(silos):
    manifest = private_run(2)
    figures = silo_block(manifest, 0, silos[0], 1, {}).figures
    assert figures["tokens"] == 2 * 3 * 8 * 8  # rounds, steps, sequences, tokens
    assert set(figures) == {"loss_mean", "tokens", "seconds", "tokens_per_s"}


def test_of_few_sequences_it_says_no_mean(silos):
    """Two rounds of 20."""
    for floor, said in ((40, True), (41, False)):
        manifest = private_run(2, private={"count_floor": floor})
        figures = silo_block(manifest, 0, silos[0], 1, {}).figures
        assert ("loss_mean" in figures) == said
        assert figures["tokens"] > 0


def test_nor_how_few_were_balanced(whole_text):
    manifest = private_run(2, private={"experts_of": [2], "count_floor": 1000})
    figures = silo_block(manifest, 0, whole_text, 1, {}).figures
    assert set(figures) == {"tokens", "seconds", "tokens_per_s"}


def test_routers_of_another_shape_are_refused(silos):
    other = private_run(
        2, router={"model": {"hidden": 32, "layers": 1, "heads": 2, "feed_forward": 32}}
    )
    wrong = state_to_bytes(build_silo_router(other, 0, None))
    with pytest.raises(Malformed):
        silo_block(private_run(2), 0, silos[0], 2, {0: wrong})
