"""Every rule of the simulated world is seen to fire: a bug is planted, and the watch sees it.

Each bug is one that a change to the core or to a host could really bring. `hunt` tries
seeds until one breaks, so a test does not depend on what a certain seed draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from smalltalk_fed.core import admission, retention
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.dispatch import Dispatcher
from smalltalk_fed.core.events import Event
from smalltalk_fed.core.leases import Leases
from smalltalk_fed.core.outbox import Outbox, Ready
from smalltalk_fed.core.reports import Reports
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.simulation.coordinator_host import CoordinatorHost
from smalltalk_fed.simulation.report import Report
from smalltalk_fed.simulation.rules import Rule
from smalltalk_fed.simulation.scenario import under_faults
from smalltalk_fed.simulation.simulate import simulate

Plant = pytest.MonkeyPatch


def hunt(make: type[Coordinator] = Coordinator, seeds: Iterable[int] = range(60)) -> Report:
    """The first run that breaks a rule."""
    for seed in seeds:
        report = simulate(under_faults(seed), make=make)
        if report.violations:
            return report
    raise AssertionError("the bug was not noticed")


def test_without_a_bug_nothing_fires() -> None:
    for seed in range(12):
        assert simulate(under_faults(seed)).violations == ()


def test_a_result_that_counts_twice(monkeypatch: Plant) -> None:
    accept = Reports._accept

    def forgetful(self: Reports, result: Any, message: msg.Exchange, now: float) -> str:
        finished = self._state.finished.pop(result.unit_id, None)  # "was it here before?"
        unit_id = accept(self, result, message, now)
        if finished is not None:
            self._state.finished[result.unit_id] = finished
        return unit_id

    monkeypatch.setattr(Reports, "_accept", forgetful)
    assert hunt().broken_rule == Rule.ACCEPTED_ONCE.name


def test_a_unit_that_is_still_free_when_it_is_leased(monkeypatch: Plant) -> None:
    lease = Dispatcher.lease

    def keeps_it(self: Dispatcher, key: UnitKey, *rest: Any, **more: Any) -> Any:
        granted = lease(self, key, *rest, **more)
        self.free()[key] = None
        return granted

    monkeypatch.setattr(Dispatcher, "lease", keeps_it)
    assert hunt().broken_rule == Rule.COPIES.name


def test_leasing_anew_at_once_after_a_restart() -> None:
    class Hasty(Coordinator):
        def start(self, now: float) -> Ready:
            self.leases.frozen_until = 0.0
            return super().start(now)

    assert hunt(Hasty).broken_rule == Rule.COPIES.name


def test_a_segment_that_is_named_twice() -> None:
    class Muddled(Coordinator):
        def job_done(self, outcome: jmsg.JobFinished | jmsg.JobFailed, now: float) -> Ready:
            if isinstance(outcome, jmsg.JobFinished) and outcome.job_id == "segments":
                first, *others = outcome.outputs
                outcome = replace(outcome, outputs=(first, first, *others[1:]))
            return super().job_done(outcome, now)

    report = hunt(Muddled)
    assert report.broken_rule == Rule.ONE_SEGMENT.name
    assert "segments" in report.violations[0]


def test_a_round_whose_shares_are_of_another_chunk(monkeypatch: Plant) -> None:
    from smalltalk_fed.simulation import contents

    real = contents.chunk_ids

    def again(seed: int, total: int, chunk: int, count: int) -> Any:
        return real(seed, total, max(0, chunk - 1), count)  # the chunk of the round before

    monkeypatch.setattr(contents, "chunk_ids", again)
    report = hunt()
    assert report.broken_rule == Rule.ONE_SEGMENT.name
    assert "round 2" in report.violations[0]


def test_hard_state_that_changes_without_an_event() -> None:
    class Quiet(Coordinator):
        def handle(self, message: msg.Request, conversation: int, now: float) -> Ready:
            ready = super().handle(message, conversation, now)
            if isinstance(message, msg.Leave):
                self.state.joined -= 1
            return ready

    assert hunt(Quiet).broken_rule == Rule.REPLAY.name


def test_an_event_that_is_journaled_and_not_applied(monkeypatch: Plant) -> None:
    def only_journals(self: Outbox, event: Event) -> None:
        if type(event).__name__ != "UnitStarted":
            self._state.apply(event)
        self._ready.events.append(event)

    monkeypatch.setattr(Outbox, "emit", only_journals)
    assert hunt().broken_rule == Rule.REPLAY.name


def test_a_host_that_answers_before_the_commit(monkeypatch: Plant) -> None:
    settle = CoordinatorHost._settle

    def eager(self: CoordinatorHost, ready: Ready, due: float | None) -> None:
        self._release(ready.replies, self._world.now)
        settle(self, replace(ready, replies=[]), due)

    monkeypatch.setattr(CoordinatorHost, "_settle", eager)
    assert hunt().broken_rule == Rule.COMMITTED.name


def test_a_disk_that_loses_what_was_committed(monkeypatch: Plant) -> None:
    boot = CoordinatorHost.boot

    def torn(self: CoordinatorHost) -> None:
        del self.disk.rows[-2:]
        boot(self)

    monkeypatch.setattr(CoordinatorHost, "boot", torn)
    rules = {
        simulate(under_faults(seed)).broken_rule for seed in range(60) if under_faults(seed).faults
    }
    assert Rule.KEPT.name in rules


def test_router_parameters_that_are_dropped_too_early(monkeypatch: Plant) -> None:
    monkeypatch.setattr(retention, "PARAMETERS_ROUNDS", 1)
    assert hunt().broken_rule == Rule.BLOBS.name


def test_leases_that_never_end(monkeypatch: Plant) -> None:
    monkeypatch.setattr(Leases, "deadline", lambda self: None)
    monkeypatch.setattr(Leases, "expired", lambda self, now: [])
    report = hunt()
    assert report.broken_rule == Rule.ENDS.name
    assert not report.finished


def test_a_deadline_that_stays_where_it_is() -> None:
    class Idle(Coordinator):
        def tick(self, now: float) -> Ready:
            return Ready()

    assert hunt(Idle).broken_rule == Rule.TIME.name


def test_a_core_that_fails(monkeypatch: Plant) -> None:
    def fails(self: HardState, event: Event) -> None:
        raise KeyError(type(event).__name__)

    real: Callable[[HardState, Event], None] = HardState.apply

    def apply(self: HardState, event: Event) -> None:
        (fails if type(event).__name__ == "SegmentsMade" else real)(self, event)

    monkeypatch.setattr(HardState, "apply", apply)
    report = hunt()
    assert report.broken_rule == Rule.SOUND.name
    assert "SegmentsMade" in report.violations[0]


def test_a_node_that_audits_its_own_work(monkeypatch: Plant) -> None:
    from smalltalk_fed.core import reports, results, scheduling

    for module in (scheduling, reports, results):
        monkeypatch.setattr(module, "barred", lambda state, key: set())
    assert hunt().broken_rule == Rule.OWN_WORK.name


def test_a_division_of_what_is_still_looked_at(monkeypatch: Plant) -> None:
    monkeypatch.setattr(HardState, "waits_for_audits", False)
    assert hunt().broken_rule == Rule.SETTLED.name


def test_a_quarantined_node_that_may_go_on(monkeypatch: Plant) -> None:
    from smalltalk_fed.core.exclusion import Exclusion

    monkeypatch.setattr(Exclusion, "shut_out", lambda self, node_id, why: None)
    monkeypatch.setattr(admission, "known", lambda state, node_id: state.nodes[node_id])
    assert hunt(seeds=range(120)).broken_rule == Rule.OUT.name


def test_a_worker_that_is_blamed_for_what_its_accuser_says(monkeypatch: Plant) -> None:
    from smalltalk_fed.simulation import contents

    real = contents.judge

    def hasty(job: jmsg.JudgeJob, blobs: Any) -> jmsg.Judged:
        judged = real(job, blobs)
        one = judged.verdict == "open" and len(job.opinions) == 1
        return replace(judged, verdict="bad") if one else judged

    monkeypatch.setattr(contents, "judge", hasty)
    assert hunt(seeds=range(120)).broken_rule == Rule.HONEST.name
