"""The gate in front of every call: work never meets it, a flood is told, slowed, dropped."""

from __future__ import annotations

import contextlib

import pytest
from smalltalk_coordinator.gate import Gate, Overrun
from support.core_world import make_manifest

from smalltalk_fed.wire import limits
from smalltalk_fed.wire.limits import CallLimits, RunLimits

EXPERTS = 8
ALLOWED = RunLimits.of(make_manifest(experts=EXPERTS)).nodes
START = 1_000_000.0


def flood(gate: Gate, who: str, now: float, calls: int = 10_000) -> list[Overrun]:
    """Call as fast as possible; returns the refusals."""
    refusals = []
    for _ in range(calls):
        try:
            gate.enter(who, "Exchange", now)
        except Overrun as overrun:
            refusals.append(overrun)
    return refusals


def call(gate: Gate, now: float, method: str = "Exchange", who: str = "n-1") -> None:
    gate.enter(who, method, now)
    assert gate.begin(who, method, now, now) is None
    gate.leave(who, method, now)


def until_refused(method: str, charge: float = 0.0) -> int:
    """Calls that a new gate lets through, if each turns out to cost `charge` more."""
    gate, calls = Gate(ALLOWED), 0
    with contextlib.suppress(Overrun):
        while True:
            call(gate, START, method)
            gate.charge("n-1", charge, START)
            calls += 1
    return calls


def test_work_as_fast_as_machine_and_line_can_do_never_meets_the_gate() -> None:
    gate, now = Gate(ALLOWED), START
    call(gate, now, "Join")
    for _ in range(200):  # units that take no time at all, each with every router to fetch
        call(gate, now)
        for _ in range(EXPERTS):
            call(gate, now, "GetBlob")
        for _ in range(2):
            call(gate, now, "BlobState")
            call(gate, now, "PutBlob")
        call(gate, now)
        gate.charge("n-1", limits.COSTLY_CALL, now)
        gate.progress("n-1", now)
    assert gate.report(now) == []


def test_heartbeats_of_the_shortest_lease_never_meet_the_gate() -> None:
    gate = Gate(ALLOWED)
    for beat in range(20_000):
        call(gate, START + 0.5 * beat)
    assert gate.report(START + 10_000) == []


def test_all_nodes_may_come_back_at_once() -> None:
    gate = Gate(ALLOWED)
    for number in range(1000):
        for method in ("Exchange", "Join", "Exchange"):
            call(gate, START, method, f"n-{number}")


def test_a_flood_is_told_then_waits_then_is_not_heard_then_begins_anew() -> None:
    dropped: list[tuple[str, str]] = []
    gate = Gate(ALLOWED, lambda who, why: dropped.append((who, why)))
    refusals = flood(gate, "n-1", START)
    assert len(refusals) == 10_000 - ALLOWED.calls_burst
    told, last = refusals[0], refusals[-1]
    assert "n-1 asked more than 20 times a second" in str(told)
    assert f"at most {ALLOWED.calls_burst:.0f} times at once" in str(told)
    assert told.wait_s > 0
    assert [overrun.hold_s > 0 for overrun in refusals[:12]] == [False] * 8 + [True] * 4
    assert "n-1 is not heard for 300 s more" in str(last)
    assert last.wait_s == limits.DROP_S
    ((who, why),) = dropped  # said once
    assert who == "n-1"
    assert "20 times a second" in why
    (excess,) = gate.report(START + 1)
    assert (excess.caller, excess.dropped_for_s) == ("n-1", limits.DROP_S - 1)
    with pytest.raises(Overrun, match="not heard for 1 s more"):
        call(gate, START + limits.DROP_S - 1)
    call(gate, START + limits.DROP_S)
    assert gate.report(START + limits.DROP_S) == []


def test_a_flood_is_nothing_to_others() -> None:
    gate = Gate(ALLOWED)
    flood(gate, "n-1", START)
    for _ in range(100):
        call(gate, START, who="n-2")
    assert [excess.caller for excess in gate.report(START)] == ["n-1"]


def test_who_waits_as_it_is_told_is_welcome_and_never_dropped() -> None:
    gate, now, waits = Gate(ALLOWED), START, []
    for _ in range(5000):
        try:
            call(gate, now)
        except Overrun as overrun:
            waits.append(overrun.wait_s)
            now += overrun.wait_s
            call(gate, now)
    assert waits
    assert max(waits) < limits.DROP_S


def test_refusals_are_forgiven_with_time() -> None:
    gate, now = Gate(ALLOWED), START
    for _ in range(5):
        refusals = flood(gate, "n-1", now, int(ALLOWED.calls_burst) + limits.DROP_AFTER - 1)
        assert len(refusals) == limits.DROP_AFTER - 1
        assert all(refusal.wait_s < limits.DROP_S for refusal in refusals)
        (excess,) = gate.report(now)
        assert excess.refused == limits.DROP_AFTER - 1
        now += limits.DROP_AFTER * limits.FORGIVE_S
        assert gate.report(now) == []


def test_a_flood_that_can_only_ask_one_by_one_is_dropped_too() -> None:
    gate, now = Gate(ALLOWED), START
    overrun: Overrun | None = None
    while now < START + 300 and (overrun is None or overrun.wait_s < limits.DROP_S):
        now += 0.001
        try:
            call(gate, now)
        except Overrun as refused:
            overrun = refused
            now += refused.hold_s
    assert "went on after 40 refusals" in str(overrun)


def test_what_is_costly_or_wrong_counts_as_many_calls() -> None:
    burst = ALLOWED.calls_burst
    assert until_refused("Exchange") == burst
    assert until_refused("Join") == int(burst / limits.COSTLY_CALL)
    assert (
        until_refused("Exchange", limits.FAULT_CALLS) == int(burst / (1 + limits.FAULT_CALLS)) + 1
    )


def test_of_too_many_calls_at_a_time_the_oldest_gives_way() -> None:
    gate = Gate(ALLOWED)
    most = ALLOWED.in_flight["PutBlob"]
    assert [gate.begin("n-1", "PutBlob", n, START) for n in range(most)] == [None] * most
    assert gate.begin("n-2", "PutBlob", "another's", START) is None
    assert gate.begin("n-1", "PutBlob", most, START) == 0
    gate.leave("n-1", "PutBlob", 0)  # it gave way; nothing is freed twice
    gate.leave("n-1", "PutBlob", 1)
    assert gate.begin("n-1", "PutBlob", most + 1, START) is None
    assert gate.begin("n-1", "PutBlob", most + 2, START) == 2


def test_calls_that_come_all_at_once_take_turns_and_others_need_not_wait() -> None:
    gate, at_once = Gate(ALLOWED), int(limits.TURNS_AT_ONCE)
    turns = [gate.enter("n-1", "Exchange", START) for _ in range(at_once + 3)]
    assert turns[:at_once] == [0.0] * at_once
    assert turns[at_once:] == pytest.approx([limits.TURN_S * n for n in (1, 2, 3)])
    assert gate.enter("n-2", "Exchange", START) == 0.0
    assert gate.enter("n-1", "Exchange", START + 3 * limits.TURN_S) == pytest.approx(limits.TURN_S)
    assert gate.enter("n-1", "Exchange", START + 1.0) == 0.0


def test_bytes_are_paced_and_never_refused() -> None:
    gate, part, now = Gate(ALLOWED), 256 * 1024, START
    budget, moved = ALLOWED.bytes_up, 0
    while moved + part <= budget:
        assert gate.pace_s("n-1", "up", part, now) == 0  # a unit's worth at any speed
        moved += part
    began, beyond = now, 0
    while now - began < 60.0:
        now += gate.pace_s("n-1", "up", part, now)
        beyond += part
    assert beyond == pytest.approx(budget, rel=0.05)  # the budget again in a minute
    assert gate.pace_s("n-1", "down", part, now) == 0
    assert gate.pace_s("n-2", "up", part, now) == 0
    gate.progress("n-1", now)
    assert gate.pace_s("n-1", "up", part, now) == 0


def test_what_is_remembered_of_callers_is_bounded() -> None:
    gate = Gate(CallLimits(calls_burst=3.0, callers_max=10))
    flood(gate, "n-flood", START)
    for number in range(9):
        call(gate, START, who=f"n-{number}")
    with pytest.raises(Overrun):  # the one heard least recently goes first
        call(gate, START, who="n-flood")
    for number in range(9, 100):
        call(gate, START, who=f"n-{number}")
    assert gate.report(START) == []
