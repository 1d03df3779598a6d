"""A result that changes nothing is not looked at again; one that does is, when its turn comes."""

from __future__ import annotations

import pytest
from support.audit_world import audited, auditor_of, turn

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Result
from smalltalk_fed.errors import Malformed, Refused
from smalltalk_fed.host.inbound import still_checked, to_check


def said(result: Result) -> msg.Exchange:
    return msg.Exchange("n-1", 1, finished=result)


def test_an_opinion_whose_audit_is_settled_may_be_said_again_though_its_blob_is_gone() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    nodes[0].done()
    auditor = auditor_of(nodes, "router_round/0/1")
    opinion = auditor.result()
    state = world.coordinator.state
    assert to_check(state, said(opinion)) == (opinion,)
    auditor.done()
    assert opinion.outputs[0].digest in world.released
    assert to_check(state, said(opinion)) == ()
    order = auditor.poll(finished=opinion, wants_work=False)
    assert order and order.accepted == opinion.unit_id


def test_a_result_whose_unit_is_open_again_by_its_turn_must_be_handed_in_once_more() -> None:
    world, nodes = audited("abcd")
    turn(nodes)
    result = nodes[0].result()
    nodes[0].done()
    state = world.coordinator.state
    checked = to_check(state, said(result))
    assert checked == ()
    still_checked(state, said(result), checked)
    lost = result.outputs[0].digest
    world._settle(world.coordinator.blob_damaged(lost, "damaged", world.now))
    with pytest.raises(Refused, match="once more"):
        still_checked(state, said(result), checked)
    still_checked(state, said(result), (result,))


def test_what_is_of_no_unit_is_refused_before_anything_is_looked_at() -> None:
    world, _ = audited("a")
    with pytest.raises(Malformed):
        to_check(world.coordinator.state, said(Result("nonsense")))
