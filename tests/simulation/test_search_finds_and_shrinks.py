"""A search finds the first seed that breaks a rule, and what it shrinks to still breaks it."""

from __future__ import annotations

import pytest

from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.outbox import Ready
from smalltalk_fed.simulation.faults import CoordinatorCrash
from smalltalk_fed.simulation.rules import Rule
from smalltalk_fed.simulation.search import Case, search
from smalltalk_fed.simulation.simulate import simulate


class Hasty(Coordinator):
    """Leases anew at once after a restart, as none should."""

    def start(self, now: float) -> Ready:
        self.leases.frozen_until = 0.0
        return super().start(now)


def test_what_is_found_is_the_first_and_shrinks_to_what_matters() -> None:
    found = search(0, 100, make=Hasty)
    assert found is not None
    rule = Rule.COPIES.name
    assert found.report.broken_rule == found.shrunk_report.broken_rule == rule
    for seed in range(found.case.seed):
        assert not simulate(Case(seed).scenario(), make=Hasty).violations
    drawn, shrunk = found.case.scenario(), found.shrunk.scenario()
    assert len(shrunk.faults) <= len(drawn.faults)
    assert any(isinstance(fault, CoordinatorCrash) for fault in found.faults)
    assert shrunk.fleet.nodes <= drawn.fleet.nodes
    # Not one of the faults that are left could be left out.
    numbers = found.shrunk.faults or ()
    for number in numbers:
        fewer = Case(
            found.shrunk.seed,
            found.shrunk.nodes,
            found.shrunk.experts,
            tuple(other for other in numbers if other != number),
            found.shrunk.calm,
        )
        assert simulate(fewer.scenario(), make=Hasty).broken_rule != rule


def test_the_line_that_replays_names_all_that_was_left_out() -> None:
    line = Case(9, nodes=3, experts=2, faults=(0, 4), calm=True).command_line()
    for part in ("--seed 9", "--nodes 3", "--experts 2", "--faults 0,4", "--calm"):
        assert part in line
    assert "--faults none" in Case(9, faults=()).command_line()
    assert Case(9).command_line() == "smalltalk simulate --scenario faults --seed 9"


def test_a_few_hundred_seeds_break_no_rule() -> None:
    assert search(0, 200) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine
def test_a_few_thousand_seeds_break_no_rule() -> None:
    seen: list[int] = []
    assert search(1000, 3000, processes=2, on_progress=seen.append) is None
    assert seen == sorted(seen)
    assert seen[-1] == 3000
