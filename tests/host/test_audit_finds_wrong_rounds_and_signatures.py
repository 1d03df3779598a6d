"""The audit finds results that came at the wrong time, or from somebody else than they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.planted_run import ROUNDS, Planted, says

from smalltalk_fed.core import events as ev

# ----------------------------------------------------------------------------- rounds and routers


def test_a_result_that_is_accepted_twice(planted: Planted) -> None:
    for unit_id, check in (("router_round/0/2", "routers"), ("train_expert/1", "experts")):
        place, event = planted.find(ev.UnitAccepted, unit_id=unit_id)
        planted.events.insert(place + 1, event)
        assert says(planted.audit(), check, f"{unit_id}: it was accepted twice")


def test_a_round_that_a_router_did_not_do(planted: Planted) -> None:
    place, _ = planted.find(ev.UnitAccepted, unit_id="router_round/1/2")
    del planted.events[place]
    report = planted.audit()
    assert says(report, "routers", "round 3: it was divided before router_round/1/2 was done")
    assert says(report, "routers", "router_round/1/3: it was accepted, though router_round/1/2")


def test_a_result_that_comes_in_another_round(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/1/2")
    del planted.events[place]
    later, _ = planted.find(ev.RoundAssigned, round=3)
    planted.events.insert(later + 1, event)
    assert says(planted.audit(), "routers", "router_round/1/2: it was accepted in round 3")


def test_a_slice_that_was_divided_before_the_routers_were_done(planted: Planted) -> None:
    place, _ = planted.find(ev.UnitAccepted, unit_id=f"router_round/1/{ROUNDS}")
    del planted.events[place]
    report = planted.audit()
    what = f"shard/0: it was accepted, though router_round/1/{ROUNDS} does not count"
    assert says(report, "segments", what)
    assert says(report, "routers", "phase sharding: it began before router_round/1/")


def test_outputs_that_such_a_unit_does_not_have(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/1/1")
    planted.change(place, outputs=event.outputs[:1])
    assert says(planted.audit(), "routers", "its outputs are not those of such a unit")


def test_a_round_that_was_left_out(planted: Planted) -> None:
    place, _ = planted.find(ev.RoundAssigned, round=2)
    del planted.events[place]
    assert says(planted.audit(), "routers", "round 3: it was divided after round 1")


def test_a_division_that_came_back_otherwise(planted: Planted) -> None:
    place, event = planted.find(ev.RoundAssigned, round=2)
    lost = ev.BlobLost(event.at, "0" * 64, "", 2, "it is damaged")
    other = replace(event, shares=event.shares[::-1])
    planted.events[place + 1 : place + 1] = [lost, other]
    assert says(planted.audit(), "routers", "round 2: it was divided again, and differently")


def test_a_router_that_others_built_on_was_replaced(planted: Planted) -> None:
    """The division of round 3 was lost, then a router of round 2, which came back otherwise."""
    place, after = planted.find(ev.UnitAccepted, unit_id="router_round/0/3")
    _, event = planted.find(ev.UnitAccepted, unit_id="router_round/0/2")
    _, divided = planted.find(ev.RoundAssigned, round=3)
    parameters = replace(after.outputs[0], name="parameters")
    planted.events[place + 1 : place + 1] = [
        ev.BlobLost(event.at, "0" * 64, "", 3, "it is damaged"),
        ev.BlobLost(event.at, "0" * 64, event.unit_id, 0, "it is damaged"),
        replace(event, outputs=(parameters, *event.outputs[1:])),
        divided,
    ]
    assert says(planted.audit(), "routers", "it is not the one any more that router_round/0/3")


# ------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("unit_id", ["router_round/0/2", "shard/0", "train_expert/1", "evaluate/0"])
def test_a_bad_signature(planted: Planted, unit_id: str) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id=unit_id)
    flipped = bytes([int(event.signature[:2], 16) ^ 1]).hex()
    planted.change(place, signature=flipped + event.signature[2:])
    report = planted.audit()
    assert [f.where for f in report.findings] == [unit_id]
    assert says(report, "signatures", f"node {event.node_id} did not sign it")


def test_a_result_that_is_counted_for_another_node(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/0/1")
    other = next(node for node in planted.keys if node != event.node_id)
    planted.change(place, node_id=other)
    assert says(planted.audit(), "signatures", f"node {other} did not sign it")
    planted.change(place, node_id="n-nobody")
    assert says(planted.audit(), "signatures", "node n-nobody did not sign it")


def test_figures_and_inputs_are_part_of_what_is_signed(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="evaluate/1")
    planted.change(place, figures=event.figures | {"suffix_nll": 0.0})
    assert says(planted.audit(), "signatures", "evaluate/1")
    planted.change(place, figures=event.figures)
    place, _ = planted.find(ev.RoundAssigned, round=1)
    planted.change(place, shares=planted.events[place].shares[::-1])
    assert says(planted.audit(), "signatures", "router_round/0/1")
