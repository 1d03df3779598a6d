"""`limits.toml` in the node's folder: a run that needs more, and hours of the day."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import Error
from support.flower_grid import ThreadGrid
from support.flower_runs import FlowerStage, events
from support.flower_silos import SiloStage

from smalltalk_fed.core.events import NodeEnrolled, UnitAccepted
from smalltalk_fed.core.silo_events import SeatTaken
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.flower.turns import refused
from smalltalk_fed.worksite.limits import LIMITS_FILE
from smalltalk_fed.worksite.privacy_limit import TOLD


def closed_hours() -> str:
    """A minute half a day away."""
    start = datetime.now() + timedelta(hours=12)
    end = start + timedelta(minutes=1)
    return f"{start:%H:%M}-{end:%H:%M}"


def limit(stage: FlowerStage, name: str, line: str) -> None:
    (stage.path / name).mkdir(mode=0o700, exist_ok=True)
    (stage.path / name / LIMITS_FILE).write_text(line + "\n")


def done_by(stage: FlowerStage) -> set[str]:
    named = {e.node_id: e.name for e in events(stage.folder) if isinstance(e, NodeEnrolled)}
    return {named[e.node_id] for e in events(stage.folder) if isinstance(e, UnitAccepted)}


def refusals(grid: ThreadGrid) -> set[str]:
    return {why for _, _, records in grid.received if (why := refused(records))}


@pytest.fixture
def stage(corpus: TokenCorpus, tmp_path: Path) -> FlowerStage:
    """Without audits: the node that is left alone could not do all of them."""
    return FlowerStage(tmp_path, corpus, {"audit": {"rate": 0.0}})


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("memory_gb = 0.001", "GB of memory, and this node may use 0.001 GB"),
        (f'hours = "{closed_hours()}"', "outside the hours that its owner set, until"),
    ],
)
def test_a_run_that_they_do_not_allow_is_told_so(
    stage: FlowerStage, line: str, sentence: str
) -> None:
    limit(stage, "a", line)
    grid = stage.play()
    assert done_by(stage) == {"b"}
    assert any(sentence in why for why in refusals(grid))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (f'hours = "{closed_hours()}"', "outside the hours"),
        ("memory_gb = 0.001", "this node may use 0.001 GB"),
    ],
)
def test_a_node_that_may_do_no_more_gives_its_unit_back(
    stage: FlowerStage, line: str, sentence: str
) -> None:
    """No unit fails for it: another node gets it, and the run goes on."""

    def fault(node: int, kind: str, number: int) -> Error | None:
        if (node, kind, number) == (101, "train", 1):
            limit(stage, "a", line)
        return None

    grid = stage.play(fault)
    assert done_by(stage) == {"a", "b"}
    assert sum((n, kind) == (101, "train") for n, kind, _ in grid.sent) == 2
    assert any(sentence in why for why in refusals(grid))


def test_the_limits_are_the_owners_file(stage: FlowerStage) -> None:
    limit(stage, "a", "memory = 3")
    grid = stage.play()
    assert done_by(stage) == {"b"}
    assert any("there is no limit called 'memory'" in why for why in refusals(grid))


def test_a_silo_whose_text_a_run_would_tell_too_much_of_takes_no_seat(
    public: TokenCorpus, tmp_path: Path
) -> None:
    """The run has no noise, so that no epsilon bounds it; what it would cost stays here."""
    stage = SiloStage(tmp_path, public)
    limit(stage, "a", "epsilon_at_most = 1.0")
    grid = stage.play_until(lambda grid: any(TOLD in why for why in refusals(grid)))
    assert all(TOLD in why and "noise" not in why for why in refusals(grid))
    assert 0 not in {e.seat for e in events(stage.folder) if isinstance(e, SeatTaken)}
