"""What a silo says of its text: counts, segments, sums of losses, and how little that is."""

import numpy as np
import pytest
from support.silos import Picked, Silo, by_kind, private_run

from smalltalk_fed.mixture.silo_prices import WITHHELD
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.private_em import run_private_em
from smalltalk_fed.train.scoring import score, sequence_losses
from smalltalk_fed.train.silo import (
    build_silo_router,
    count_wins,
    evaluate_silo,
    heldout_scores,
    silo_segments,
)


@pytest.fixture(scope="module")
def silos(corpus):
    return by_kind(corpus)


@pytest.fixture(scope="module")
def finished(silos):
    """A private run of two silos, one kind of text and one expert each."""
    manifest = private_run(2, router={"rounds": 6})
    return manifest, run_private_em(manifest, silos)


def naive_counts(manifest, silo, routers, prices):
    """One prefix at a time."""
    models = [build_silo_router(manifest, e, data) for e, data in enumerate(routers)]
    counts = [0] * len(routers)
    for i in range(len(silo.heldout)):
        worth = score(models, silo.heldout, np.array([i]), 8, batch_sequences=1)[0] - prices
        counts[int(np.argmax(worth))] += 1
    return counts


@pytest.mark.parametrize("prices", [[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
def test_counts_are_of_the_prefixes_that_each_router_wins(finished, silos, prices):
    manifest, oracle = finished
    for silo in silos:
        counts = count_wins(manifest, silo, oracle.routers, prices)
        assert counts.tolist() == naive_counts(manifest, silo, oracle.routers, np.array(prices))


def test_each_silo_wins_its_own_text(finished, silos):
    manifest, oracle = finished
    for seat, silo in enumerate(silos):
        counts = count_wins(manifest, silo, oracle.routers, oracle.prices_E)
        assert counts[seat] >= 9  # of 10


def test_a_router_that_has_left_wins_nothing_and_the_others_win_its_text(finished, silos, tmp_path):
    manifest, oracle = finished
    left = [oracle.routers[0], None]
    every = count_wins(manifest, silos[1], oracle.routers, [0.0, 0.0], cache_folder=tmp_path)
    assert every[1] >= 9
    # The scores that are kept are of both.
    counts = count_wins(manifest, silos[1], left, [0.0, -50.0], cache_folder=tmp_path)
    assert counts.tolist() == [10, 0]


def test_scores_are_kept_for_the_next_prices_and_only_for_the_same_routers(
    finished, silos, tmp_path
):
    manifest, oracle = finished
    first = heldout_scores(manifest, silos[0], oracle.routers, cache_folder=tmp_path)
    [file] = tmp_path.iterdir()
    planted = first + 1
    file.write_bytes(planted.tobytes())
    assert (
        heldout_scores(manifest, silos[0], oracle.routers, cache_folder=tmp_path) == planted
    ).all()
    file.write_bytes(b"short")
    assert (
        heldout_scores(manifest, silos[0], oracle.routers, cache_folder=tmp_path) == first
    ).all()
    turned = heldout_scores(manifest, silos[0], oracle.routers[::-1], cache_folder=tmp_path)
    assert (turned == first[:, ::-1]).all()
    assert len(list(tmp_path.iterdir())) == 1  # the old routers' scores are gone


def test_a_silos_only_expert_has_all_its_text(finished, silos):
    manifest, oracle = finished
    segments = silo_segments(manifest, 1, silos[1], {1: oracle.routers[1]})
    assert list(segments) == [1]
    assert segments[1].tolist() == list(range(48))


def test_a_silos_experts_share_its_text_evenly_by_their_routers(finished, corpus):
    _, oracle = finished
    manifest = private_run(2, private={"experts_of": [2]})
    whole = Silo(Picked(corpus.train, np.arange(96)), Picked(corpus.heldout, np.arange(20)))
    segments = silo_segments(manifest, 0, whole, dict(enumerate(oracle.routers)))
    assert sorted(np.concatenate(list(segments.values()))) == list(range(96))
    assert [len(ids) for ids in segments.values()] == [48, 48]
    for kind in (0, 1):
        assert (segments[kind] % 2 == kind).mean() > 0.9
        assert (np.diff(segments[kind]) > 0).all()


def test_of_an_expert_that_left_before_the_others_have_its_text(finished, corpus):
    _, oracle = finished
    manifest = private_run(3, private={"experts_of": [3]})
    whole = Silo(Picked(corpus.train, np.arange(96)), Picked(corpus.heldout, np.arange(20)))
    two = silo_segments(manifest, 0, whole, {0: oracle.routers[0], 2: oracle.routers[1]},
                        without=(1,))  # fmt: skip
    assert {expert: len(ids) for expert, ids in two.items()} == {0: 48, 2: 48}
    one = silo_segments(manifest, 0, whole, {}, without=(0, 1))
    assert list(one) == [2]
    assert one[2].tolist() == list(range(96))


def test_the_evaluation_sums_over_what_the_experts_here_win(finished, silos):
    """The first of them, as many as are a multiple of the floor: losses of the rest stay here."""
    _, oracle = finished
    manifest = private_run(2, private={"count_floor": 4})
    model = build_expert(manifest, "expert", 0)
    weights = {0: state_to_bytes(model)}
    outcome = evaluate_silo(manifest, silos[0], oracle.routers, oracle.prices_E, weights)
    ids = np.flatnonzero(outcome.winner_N == 0)
    assert 8 < len(ids) < 12
    ids = ids[:8]
    prefix, suffix = sequence_losses(model, silos[0].heldout, ids, 8, batch_sequences=16)
    assert outcome.figures["sequences"] == len(ids)
    assert outcome.figures["prefix_nll"] == pytest.approx(prefix.sum())
    assert outcome.figures["suffix_nll"] == pytest.approx(suffix.sum())
    assert outcome.figures["prefix_tokens"] == len(ids) * 7
    assert outcome.figures["suffix_tokens"] == len(ids) * 8


def test_sums_over_fewer_sequences_than_the_floor_are_withheld(finished, silos):
    _, oracle = finished
    manifest = private_run(2, private={"count_floor": 6})
    weights = {0: state_to_bytes(build_expert(manifest, "expert", 0))}
    outcome = evaluate_silo(manifest, silos[1], oracle.routers, oracle.prices_E, weights)
    assert (outcome.winner_N == 0).sum() < 6
    assert outcome.figures == {"elsewhere": 6.0}  # of 9 or 10, rounded down


@pytest.mark.parametrize("floor", [1, 3, 4, 7])
def test_what_is_summed_over_does_not_tell_how_much_goes_elsewhere(finished, silos, floor):
    """A silo says how much it holds out: 10 less the sequences would be the rest."""
    _, oracle = finished
    manifest = private_run(2, private={"count_floor": floor})
    weights = {0: state_to_bytes(build_expert(manifest, "expert", 0))}
    worth_N = np.sort(np.subtract(*heldout_scores(manifest, silos[0], oracle.routers).T))
    # Prices of router 0 between those at which one prefix more goes elsewhere.
    between = (worth_N[1:] + worth_N[:-1]) / 2
    seen = set()
    for price in (worth_N[0] - 1, *between, worth_N[-1] + 1):
        outcome = evaluate_silo(manifest, silos[0], oracle.routers, [price, 0.0], weights)
        here = int((outcome.winner_N == 0).sum())
        summed = here // floor * floor
        assert outcome.figures["elsewhere"] == (10 - here) // floor * floor
        if summed:
            assert outcome.figures["sequences"] == summed
            assert outcome.figures["suffix_tokens"] == summed * 8
        else:
            assert set(outcome.figures) == {"elsewhere"}
        seen.add(here)
    assert seen == set(range(11))


def test_counts_go_through_the_floor_before_prices_move(finished):
    _, oracle = finished
    shown = np.stack([exchange.counts_KxE for exchange in oracle.exchanges])
    assert ((shown == WITHHELD) | ((shown >= 2) & (shown % 2 == 0))).all()
    assert (shown == WITHHELD).any()


def test_the_last_exchange_is_repeated_with_the_final_routers(finished):
    _, oracle = finished
    assert [(x.block, x.index) for x in oracle.exchanges] == [(1, 0), (2, 0), (3, 0), (3, 1)]
    assert (oracle.prices_E == oracle.exchanges[-1].prices_E).all()


def test_a_router_that_takes_others_text_gets_a_price(silos):
    """One silo has a tenth of the other's text: its router knows less, and prices make up."""
    small = Silo(Picked(silos[1].train.split, silos[1].train.ids[:6]), silos[1].heldout)
    manifest = private_run(2, private={"price_rounds": 12, "price_step": 4.0, "count_floor": 1})
    oracle = run_private_em(manifest, [silos[0], small])
    errors = [x.figures["share_error"] for x in oracle.exchanges]
    assert errors[-1] < errors[0] / 2
    assert oracle.prices_E[1] < oracle.prices_E[0]
    assert oracle.share_E.tolist() == [48 / 54, 6 / 54]
