"""Silos over Flower: what comes out is what native nodes make of the same texts, byte for byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Error
from support.flower_grid import CRASHED, ThreadGrid
from support.flower_runs import events, what_came
from support.flower_silos import (
    SILOS,
    WEIGHTS,
    SiloStage,
    private_run_folder,
    text_of,
)
from support.silo_run import run_silos

from smalltalk_fed.core.events import UnitAccepted
from smalltalk_fed.core.silo_events import SeatTaken
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Refused, Unauthenticated
from smalltalk_fed.flower.arrival import UNUSABLE_TEXT
from smalltalk_fed.flower.node_turn import take_turn
from smalltalk_fed.flower.settings import NodeSettings
from smalltalk_fed.flower.turns import Order, Question
from smalltalk_fed.mixture.package import present_experts, read_mixture


@pytest.fixture(scope="module")
def native(
    silo_messages: ThreadGrid,
    silos: SiloStage,
    public: TokenCorpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, object]:
    """The same over the tokens that the Flower nodes made of their texts."""
    folder = private_run_folder(tmp_path_factory.mktemp("native") / "run", silos.texts)
    texts = [text_of(silos.path / name) for name in SILOS]
    run_silos(folder, texts, weights=WEIGHTS, public=public)
    return what_came(folder)


def test_the_same_routers_prices_and_experts_as_the_native_silos(
    silos: SiloStage, native: dict[str, object]
) -> None:
    assert sum("silo_block" in name for name in native) == 6
    assert any(any(move) for name, move in native.items() if "prices" in name)  # type: ignore[call-overload]
    assert silos.came() == native


def test_an_owners_word_decides_which_experts_are_in_the_mixture(
    silo_messages: ThreadGrid, silos: SiloStage
) -> None:
    mixture = read_mixture(silos.folder.mixture)
    assert [expert.share for expert in mixture.experts] == ["operator", "never", "public", "public"]
    assert present_experts(silos.folder.mixture, mixture) == [0, 2, 3]
    seats = {e.seat: e.node_id for e in events(silos.folder) if isinstance(e, SeatTaken)}
    assert len(set(seats.values())) == len(SILOS)


def test_a_silo_is_sent_the_tokenizer_once(silo_messages: ThreadGrid, silos: SiloStage) -> None:
    for node in silo_messages.nodes:
        questions = [
            Question.from_records(records)
            for n, kind, records in silo_messages.sent
            if (n, kind) == (node, "query.join")
        ]
        assert [list(question.blobs) for question in questions] == [
            [],
            [silos.folder.manifest.tokenizer_sha256],
        ]


def test_scores_of_the_text_are_gone_from_the_node_when_the_run_has_ended(
    silo_messages: ThreadGrid, silos: SiloStage
) -> None:
    for name in SILOS:
        left = {path.name for path in (silos.path / name / "work").glob("*/*")}
        assert left <= {"metrics"}


def test_silos_evaluate_in_flowers_evaluate(silo_messages: ThreadGrid) -> None:
    assert sum(kind == "evaluate" for _, kind, _ in silo_messages.sent) == len(SILOS)


def test_flowers_result_shows_moves_of_the_prices_perplexity_and_bytes(
    silo_messages: ThreadGrid, silos: SiloStage
) -> None:
    found = json.loads((silos.folder.path / "flower-history.json").read_text())
    assert list(found["rounds"]) == ["1", "2", "3"]
    assert [row["block"] for row in found["rounds"].values()] == [1, 2, 2]
    assert all(0 <= row["off-diagonal"] <= 1 for row in found["rounds"].values())
    assert found["rounds"]["2"]["bytes-up"] > found["rounds"]["1"]["bytes-up"] > 0
    assert found["evaluation"]["suffix_ppl"] > 1
    assert len(found["evaluation"]["silos"]) == len(SILOS)


def test_a_silo_that_lost_its_tokens_makes_them_again_and_goes_on(
    public: TokenCorpus, tmp_path: Path, native: dict[str, object]
) -> None:
    stage = SiloStage(tmp_path, public)

    def fault(node: int, kind: str, number: int) -> Error | None:
        if (node, kind, number) == (102, "train", 2):
            shutil.rmtree(tmp_path / "b" / "text")
        return None

    grid = stage.play(fault)
    assert stage.came() == native
    assert sum((n, kind) == (102, "query.join") for n, kind, _ in grid.sent) == 3


def test_no_turn_is_done_on_another_text_than_the_one_that_took_the_seat(
    silo_messages: ThreadGrid, tmp_path: Path
) -> None:
    node, _, records = next(sent for sent in silo_messages.sent if sent[1] == "train")
    order = Order.from_records(records)
    settings = NodeSettings.of(silo_messages.nodes[node], {})
    shutil.copytree(settings.folder, tmp_path / "node")
    settings = replace(settings, folder=tmp_path / "node")
    file = settings.folder / "flower-runs.json"
    # Of an earlier process: refused for that, and not for its text.
    with pytest.raises(Unauthenticated, match="the assignment of"):
        take_turn(settings, replace(order, incarnation=order.incarnation + 1))
    ((run_id, seen),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({run_id: seen | {"text_digest": "0" * 64}}))
    with pytest.raises(Refused, match=UNUSABLE_TEXT):
        take_turn(settings, order)


@pytest.mark.slow  # `test_lost_turns_and_nodes` is the quick one, of text that is shared
def test_killed_apps_and_serverapps_cost_turns_and_change_nothing(
    public: TokenCorpus, tmp_path: Path, native: dict[str, object]
) -> None:
    stage = SiloStage(tmp_path, public)
    stage.play_until(lambda grid: sum(kind == "train" for _, kind, _ in grid.received) > 4)
    before = len([e for e in events(stage.folder) if isinstance(e, UnitAccepted)])

    def fault(node: int, kind: str, number: int) -> Error | None:
        return CRASHED if (node, kind, number) == (103, "train", 1) else None

    stage.play(fault)
    assert before > 0
    assert stage.came() == native
