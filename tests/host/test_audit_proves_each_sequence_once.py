"""The audit of a run folder: it passes over a real run, changes nothing, and has a command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from smalltalk_coordinator.cli import app
from support.planted_run import ROUNDS, Planted, says
from typer.testing import CliRunner

from smalltalk_fed.core import events as ev
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.journal import Journal

# ---------------------------------------------------------------------------------- what is right


def test_a_finished_run_is_proved(planted: Planted) -> None:
    report = audit(planted.folder)
    assert report.proved, report.findings
    assert report.counts["rounds"] == ROUNDS
    assert report.counts["sequences"] == 40 * ROUNDS
    assert (report.passes_whole, report.pass_sequences) == (1, 40 * ROUNDS - 96)
    assert report.counts["signatures"] == report.counts["results"] == 2 * ROUNDS + 4 + 2 + 2
    assert report.counts["segments"] == report.counts["experts"] == 2


def test_every_beginning_of_the_journal_is_proved(planted: Planted) -> None:
    whole = planted.events
    for length in range(len(whole)):
        planted.events = whole[:length]
        for event in whole[length:]:  # a run that is not so far has none of these yet
            for ref in getattr(event, "outputs", ()):
                if ref.name == "weights":
                    planted.blobs.drop(ref.digest)
        report = planted.audit()
        unexpected = [f for f in report.findings if "is needed and gone" not in f.what]
        assert not unexpected, (length, unexpected)


def test_what_was_released_is_named_and_not_wrong(planted: Planted) -> None:
    report = audit(planted.folder)
    assert report.blobs_not_kept == {"parameters": 2, "scores": 2 * (ROUNDS - 2)}


def test_a_router_that_was_taken_back_and_done_again_is_proved(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/1/2")
    planted.events.insert(place + 1, ev.UnitRejected(event.at, event.unit_id, "not finite"))
    planted.events.insert(place + 2, event)
    report = planted.audit()
    assert report.proved, report.findings
    assert report.counts["taken_back"] == 1


def test_lists_that_were_lost_and_made_again_are_proved(planted: Planted) -> None:
    for kind, fields in ((ev.RoundAssigned, {"round": 2}), (ev.SegmentsMade, {})):
        place, event = planted.find(kind, **fields)
        lost = ev.BlobLost(event.at, "0" * 64, "", fields.get("round", 0), "it is damaged")
        planted.events[place + 1 : place + 1] = [lost, event]
    report = planted.audit()
    assert report.proved, report.findings


def test_an_expert_that_was_taken_over_twice_is_proved(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    other = next(node for node in planted.keys if node != event.node_id)
    planted.collect(place, 1, 0, other)
    planted.collect(place + 1, 3, 1, event.node_id)
    planted.change(place + 2, figures=event.figures | {"from_step": 3.0})
    planted.sign(place + 2)
    report = planted.audit()
    assert report.proved, report.findings
    assert report.counts["collected"] == 2


# ------------------------------------------------------------------------------------- the folder


def test_events_that_make_no_sense_are_a_finding(planted: Planted) -> None:
    planted.events.insert(0, ev.NodeJoined(1.0, "n-nobody", "00"))
    assert says(planted.audit(), "journal", "event 1: it does not follow")


def state_of(folder: Path) -> dict[str, str]:
    """Digest of every file with something in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in contents.items()
        if data and not name.endswith("-shm")  # who reads is noted there
    }


def test_it_changes_nothing_and_waits_for_nobody(planted: Planted) -> None:
    with planted.folder.locked():  # somebody serves it
        journal = Journal(planted.folder.journal)
        journal.append([ev.InviteMade(2.0, "0" * 64, 3.0, 1, "")])
        before = state_of(planted.folder.path)
        report = audit(planted.folder)
        assert report.proved
        assert report.events == len(planted.events) + 1
        assert state_of(planted.folder.path) == before
        journal.append([ev.InviteMade(2.0, "1" * 64, 3.0, 1, "")])
        journal.close()


def test_the_command_prints_a_table_and_one_line(planted: Planted) -> None:
    told = CliRunner().invoke(app, ["status", str(planted.folder.path), "--audit-data"])
    assert told.exit_code == 0, told.output
    assert "4 rounds: 1 whole passes and 64 sequences of one" in told.output
    assert "proved over" in told.output


def test_the_command_ends_with_1_and_one_sentence_when_it_finds_something(
    planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    from smalltalk_fed.telemetry.console import run_program

    planted.with_share(1, 0, lambda ids: ids[1:])
    planted.audit()
    arguments = ["status", str(planted.folder.path), "--audit-data"]
    assert run_program(app, "smalltalk-coordinator", [*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["proved"] is False
    assert report["wrong"]["shares"] == 1
    assert len(printed.err.strip().splitlines()) == 1
    assert "not proved: " in printed.err
    assert run_program(app, "smalltalk-coordinator", arguments) == 1
    assert "shares: round 1: sequence" in capsys.readouterr().out
