"""The audit finds experts whose steps don't follow one another."""

from __future__ import annotations

import pytest
from support.planted_run import Planted, says
from support.tiny_run import tiny_manifest

from smalltalk_fed.core import events as ev
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.audit_experts import steps_of


def expert(planted: Planted, **figures: float) -> None:
    """Let expert 0 have been trained otherwise, and signed so."""
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    planted.change(place, figures=event.figures | figures)
    try:
        planted.sign(place)
    except KeyError:  # from a state that nobody ever had
        planted.change(place, signature="00")


def test_a_gap_in_an_experts_steps(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    planted.collect(place, 1, 0, event.node_id)
    expert(planted, from_step=2.0)
    assert says(planted.audit(), "experts", "begins at step 2, where no collected state ends")


def test_an_expert_that_stopped_early_or_went_nowhere(planted: Planted) -> None:
    expert(planted, steps=3.0)
    assert says(planted.audit(), "experts", "trained up to step 3 instead of 4")
    expert(planted, steps=0.0)
    assert says(planted.audit(), "experts", "a part goes from step 0 to 0")


def test_collected_states_out_of_order_or_signed_as_another(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    planted.collect(place, 3, 0, event.node_id)
    planted.collect(place + 1, 2, 0, event.node_id)
    planted.change(place, step=1)
    report = planted.audit()
    assert says(report, "experts", "the state at step 1 is signed as another")
    planted.change(place, step=3)
    assert says(planted.audit(), "experts", "step 2 was collected after step 3")
    planted.events[place : place + 2] = []
    planted.collect(place + 1, 1, 0, event.node_id)
    assert says(planted.audit(), "experts", "weights were collected after it was done")


@pytest.mark.parametrize("init", ["fresh", "seed"])
@pytest.mark.parametrize("capacity", ["equal", [3.0, 1.0]])
def test_the_steps_that_are_asked_of_an_expert_are_those_that_it_takes(
    planted: Planted, init: str, capacity: object
) -> None:
    import torch

    from smalltalk_fed.train.expert_plans import expert_plan

    corpus = TokenCorpus.open(planted.corpus)
    changes = {"expert": {"init": init, "steps": 30}, "assignment": {"capacity": capacity}}
    manifest = tiny_manifest(corpus, **changes)
    for sequences in (72, 24):
        plan = expert_plan(manifest, torch.device("cpu"), sequences, seeded=init == "seed")
        assert steps_of(manifest, sequences) == plan.steps


def test_an_expert_that_was_trained_before_there_were_segments(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    del planted.events[place]
    planted.events.insert(planted.find(ev.SegmentsMade)[0], event)
    assert says(planted.audit(), "experts", "while there were no segments")


def test_a_phase_that_began_too_early(planted: Planted) -> None:
    place, _ = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    del planted.events[place]
    assert says(planted.audit(), "experts", "it began before train_expert/0 was done")
