"""What a node says counts for units that it had, and is its own: no copies, nothing of others'."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.audit_world import (
    audited,
    quarantined,
    turn,
)
from support.core_world import blob

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.errors import Refused


def test_a_frozen_node_s_old_parameters_and_copied_scores_are_refused() -> None:
    _, (a, b) = audited("ab", rounds=4, audit={"first_units": 0})
    a.poll()
    b.poll()
    old, copied = a.result(), b.result()
    a.done()
    b.done()
    a.look()
    assert a.unit and a.unit.unit_id == "router_round/0/2"
    new = a.result()
    with pytest.raises(Refused, match="unchanged"):
        a.poll(finished=replace(new, outputs=(old.outputs[0], new.outputs[1])))
    for scores in (old.outputs[1], copied.outputs[1]):
        with pytest.raises(Refused, match="scores of router_round/0/2 are those of"):
            a.poll(finished=replace(new, outputs=(new.outputs[0], scores)))
    a.poll(finished=new, wants_work=False)
    order = a.poll(finished=new, wants_work=False)  # said again: it is its own
    assert order and order.accepted == "router_round/0/2"


def test_a_unit_that_others_hold_is_not_taken_from_who_never_had_it() -> None:
    world, nodes = audited("abc")
    a, _, c = nodes
    a.poll()
    c.unit = a.unit
    with pytest.raises(Refused, match="never had it"):
        c.poll(finished=c.result())
    world.restart()  # who held what is forgotten
    c.join()
    order = c.poll(finished=c.result(), wants_work=False)
    assert order and order.accepted == "router_round/0/1"


def test_failures_count_for_who_had_the_unit_alone() -> None:
    world, nodes = audited("ab")
    a, b = nodes
    a.poll()
    assert a.unit
    for _ in range(9):
        b.poll(failed=msg.Failure(a.unit.unit_id, "so that the run fails"), wants_work=False)
    assert world.coordinator.state.phase is Phase.ROUTING


def test_a_liar_can_not_have_a_blob_removed_that_another_result_names() -> None:
    world, nodes = audited("abcd")
    a, b = nodes[:2]
    a.poll()
    b.poll()
    b.done()
    stolen = world.coordinator.state.finished["router_round/1/1"].outputs[0]
    result = a.result()
    a.poll(finished=replace(result, outputs=(stolen, blob("scores", "made up"))))
    a.unit = None
    while not quarantined(world):
        turn(nodes)
        world.advance(1.0)
    assert stolen.digest not in world.released
    assert stolen.digest in needed_blobs(world.coordinator.state)
