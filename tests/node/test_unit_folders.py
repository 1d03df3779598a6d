"""Checkpoints stay while their unit may come back to this node, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_run import tiny_manifest

from smalltalk_fed.core.units import Unit, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.worksite.folders import (
    Workplace,
    forget_passed,
    forget_run,
    forget_unit,
    metrics_folder,
    unit_folder,
)

UNITS = ("router_round/0/2", "router_round/1/2", "train_seed", "train_expert/0", "train_expert/1")


def unit(unit_id: str) -> Unit:
    return Unit(UnitKey.parse(unit_id))


@pytest.fixture
def place(tmp_path: Path, corpus: TokenCorpus) -> Workplace:
    """A place with a checkpoint of every unit, and figures of one."""
    made = Workplace(tiny_manifest(corpus), corpus, tmp_path / "work", tmp_path / "experts", "cpu")
    for unit_id in UNITS:
        (unit_folder(made, unit(unit_id)) / "checkpoints").mkdir(parents=True)
    metrics_folder(made, unit("train_expert/0")).mkdir(parents=True)
    return made


def left(place: Workplace) -> set[str]:
    return {unit_id for unit_id in UNITS if unit_folder(place, unit(unit_id)).exists()}


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ("router_round/0/2", set()),  # the same one again
        ("router_round/1/1", set()),  # of a round that is open again
        ("router_round/0/3", {"router_round/0/2"}),
        ("shard/0", {"router_round/0/2", "router_round/1/2"}),
        ("train_seed", {"router_round/0/2", "router_round/1/2"}),
        ("train_expert/1", {"router_round/0/2", "router_round/1/2", "train_seed"}),
        ("evaluate/0", set(UNITS)),
    ],
)
def test_what_the_run_has_behind_it_goes(place: Workplace, given: str, gone: set[str]) -> None:
    forget_passed(place, unit(given))
    assert left(place) == set(UNITS) - gone
    assert metrics_folder(place, unit("train_expert/0")).exists()


def test_a_unit_whose_result_counts_goes_alone(place: Workplace) -> None:
    forget_unit(place, unit("train_expert/0"))
    assert left(place) == set(UNITS) - {"train_expert/0"}


def test_all_go_at_the_end_but_the_figures(place: Workplace) -> None:
    forget_run(place)
    assert left(place) == set()
    assert metrics_folder(place, unit("train_expert/0")).exists()
