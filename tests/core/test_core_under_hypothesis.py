"""Whatever nodes say and whenever they vanish, the run keeps its invariants and can end."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from support.core_runs import Runs, walk

from smalltalk_fed.core import events as ev
from smalltalk_fed.core.phases import Phase

Runs.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRuns = Runs.TestCase


def test_long_walks_end_well_and_meet_all_that_can_happen() -> None:
    seen: Counter[type] = Counter()
    for seed in range(60):
        world = walk(seed, steps=(10, 40, 120)[seed % 3])
        assert world.coordinator.state.phase is Phase.FINISHED
        seen.update(type(event) for event in world.journal)
    met = (ev.AuditOpened, ev.AuditSettled, ev.NodeQuarantined, ev.UnitRejected, ev.BlobLost)
    assert all(seen[kind] for kind in met)
