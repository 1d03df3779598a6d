"""What an organiser sees of liars: the status, the trace of a node, and readmission."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from smalltalk_coordinator import tables
from smalltalk_coordinator.cli import NAME, app
from support.audit_world import audited, drive
from support.core_world import FakeNode, World
from support.local_run import make_run_folder
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.status import run_status
from smalltalk_fed.host.trace import trace_node
from smalltalk_fed.telemetry.console import run_program

Told = tuple[RunFolder, World, FakeNode, FakeNode]


def run(*arguments: object) -> int:
    return run_program(app, NAME, [str(argument) for argument in arguments])


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """A folder whose run had a worker that lied from its second round on, and a false accuser."""
    world, nodes = audited("abcdef", rounds=3, audit={"rate": 1.0})
    worker, accuser = nodes[0], nodes[5]
    for _ in range(60):
        worker.lies = world.coordinator.state.round >= 2
        accuser.says = "it is bad" if world.coordinator.state.round >= 2 else "what is true"
        drive_one(world, nodes)
    drive(world, nodes)
    folder = make_run_folder(tmp_path / "run", write_tiny_corpus(tmp_path / "corpus"))
    journal = Journal(folder.journal)
    journal.append(world.journal)
    journal.close()
    return folder, world, worker, accuser


def drive_one(world: World, nodes: list[FakeNode]) -> None:
    from support.audit_world import turn

    turn(nodes)
    world.advance(0.5)


def test_the_status_says_who_is_out_and_why_and_who_judged(told: Told) -> None:
    _, world, worker, _ = told
    status = run_status(world.coordinator, world.now)
    node = next(n for n in status["nodes"] if n["node_id"] == worker.node_id)
    assert "is wrong" in node["quarantined"]
    assert node["audits"]["bad"] == 1 and node["audits"]["good"] >= 1
    audits = status["audits"]
    assert audits["bad"] == 1 and audits["open"] == 0 and audits["note"] is None
    experts = [each for each in audits["results"] if each["unit_id"].startswith("train_expert")]
    assert len(experts) == 2
    for each in experts:
        assert each["verdict"] == "good" and each["judged_by"] and each["reason"]
        assert each["node_id"] not in each["judged_by"]
    out = io.StringIO()
    shown = {**status, "bytes": {f"{k}_{d}": 0 for k in ("coordination", "weights")
                                for d in ("up", "down")}}  # fmt: skip
    Console(file=out, width=160).print(tables.render(shown))
    assert "quarantined" in out.getvalue()
    assert "1 bad" in out.getvalue()


def test_a_status_says_when_nothing_is_checked_or_nobody_is_left() -> None:
    world, nodes = audited("a")
    assert "no second node" in run_status(world.coordinator, world.now)["audits"]["note"]
    world.coordinator._exclusion.quarantine(nodes[0].node_id, "found out", world.now)
    assert "every node is quarantined" in run_status(world.coordinator, world.now)["audits"]["note"]
    off, _ = audited("ab", audit={"rate": 0.0})
    assert "audit.rate is 0" in run_status(off.coordinator, off.now)["audits"]["note"]


def test_the_trace_lists_a_liar_s_results_and_what_rests_on_them(told: Told) -> None:
    folder, _, worker, accuser = told
    found = trace_node(folder, worker.node_id)
    assert "is wrong" in found.quarantined
    by_unit = {result.unit_id: result for result in found.results}
    first = next(r for u, r in by_unit.items() if u.endswith("/1"))
    assert (first.verdict, first.taken_back) == ("good", "")
    bad = [result for result in found.results if result.verdict == "bad"]
    assert len(bad) == 1 and bad[0].taken_back
    uses = {(use.what, use.through) for use in found.uses}
    expert = first.unit_id.split("/")[1]
    assert ("divisions of rounds 2", f"score blocks of router {expert}") in uses
    assert any(what == "the segments" and f"router {expert}" in way for what, way in uses)
    assert any(what.startswith("train_expert/") for what, _ in uses)
    wrong = [o.unit_id for o in trace_node(folder, accuser.node_id).opinions if o.verdict]
    assert len(wrong) == 1 and wrong[0].startswith("audit/")


def test_the_commands_trace_and_readmit(
    told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, worker, _ = told
    monkeypatch.setenv("COLUMNS", "160")
    assert run("trace", folder.path, worker.node_id, "--json") == 0
    traced: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert traced["name"] == worker.name and traced["results"] and traced["uses"]
    assert run("trace", folder.path, worker.node_id) == 0
    shown = capsys.readouterr().out
    assert "is quarantined" in shown and "score blocks of router" in shown
    assert run("trace", folder.path, "n-nobody") == 2
    assert "no node is called 'n-nobody'" in capsys.readouterr().err
    assert run("readmit", folder.path, worker.node_id) == 0
    assert "as a newcomer" in capsys.readouterr().out
    assert run("status", folder.path, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    node = next(n for n in status["nodes"] if n["node_id"] == worker.node_id)
    assert node["quarantined"] is None
    assert run("readmit", folder.path, "n-nobody") == 3
