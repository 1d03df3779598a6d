"""`smalltalk simulate` as a person meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from smalltalk_fed.cli import run
from smalltalk_fed.core.leases import Leases

SMALL = ["simulate", "--nodes", "60", "--experts", "3", "--days", "1", "--seed", "2"]


@pytest.fixture(scope="module")
def compared() -> dict[str, object]:
    """One small fleet, both policies."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("typer.echo", lambda text: said.append(text))
        assert run([*SMALL, "--json"]) == 0
    report: dict[str, object] = json.loads(said[0])
    return report


def test_json_has_what_scripts_need(compared: dict[str, object]) -> None:
    assert compared["finished"] is True
    assert compared["violations"] == []
    assert re.fullmatch("[0-9a-f]{32}", str(compared["trace_digest"]))
    assert 0.3 < float(str(compared["virtual_days"])) < 4
    assert float(str(compared["wall_s"])) > 0
    assert compared["nodes"] == 60
    assert "speed" in json.dumps(compared["assumed"])


def test_the_report_measures_what_it_says(compared: dict[str, object]) -> None:
    number = {key: float(str(value)) for key, value in compared.items() if _is_number(value)}
    assert number["ideal_days"] <= number["virtual_days"]
    assert 0 < number["useful_share"] <= 1
    assert number["repeated_work"] >= 0
    assert 0 < number["busy_share"] < 1
    assert number["messages_per_s_mean"] < number["messages_per_s_peak"]
    assert number["bytes_per_s_mean"] < number["bytes_per_s_peak"]
    assert number["journal_events"] > 60
    assert 0 < number["lease_age_mean_s"] < number["lease_age_p99_s"] <= 900
    assert 0 <= number["stale_leases"] < 0.5


def test_barriers_cost_more_than_the_chosen_policies(compared: dict[str, object]) -> None:
    paper = compared["paper"]
    assert isinstance(paper, dict)
    assert paper["policy"] == "paper"
    assert paper["violations"] == []
    assert paper["virtual_days"] > float(str(compared["virtual_days"]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--no-paper"]) == 0
    said = capsys.readouterr()
    for part in ("run time", "work repeated", "stale leases", "journal", "broken rules"):
        assert part in said.out
    assert "paper policies" not in said.out


def test_a_trace_file_tells_what_happened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.txt"
    assert run(["simulate", "--scenario", "faults", "--seed", "3", "--trace", str(file)]) == 0
    lines = file.read_text().splitlines()
    assert lines[0] == "0.000000 coordinator starts with 0 events"
    assert any("UnitAccepted" in line for line in lines)
    assert lines == sorted(lines, key=lambda line: float(line.split()[0]))


def test_a_search_that_finds_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--search", "5", "--processes", "1"]) == 0
    assert "5 seeds from 1 on break no rule" in capsys.readouterr().out


def test_a_search_that_finds_something_prints_the_line_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Leases, "renew", lambda self, lease, working, now: None)
    monkeypatch.setattr(Leases, "grant", _twice)
    assert run(["simulate", "--search", "20", "--processes", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["found"]
    line = found["shrunk"]["replay"]
    assert found["violations"]
    assert found["shrunk"]["violations"]
    assert run([*line.split()[1:], "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["violations"] == found["shrunk"]["violations"]


def _twice(self: Leases, *arguments: object, **more: object) -> None:
    raise RuntimeError("a planted bug")


def test_faults_that_are_no_numbers_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--scenario", "faults", "--faults", "a,b"]) == 2
    assert "smalltalk: --faults a,b is not a list of numbers" in capsys.readouterr().err
