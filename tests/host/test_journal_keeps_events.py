"""The journal gives back exactly what was committed, also after a crash."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from smalltalk_fed.core.events import InviteMade, NodeRevoked
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.journal import Journal

EVENTS = [InviteMade(1.0, "a" * 64, 2.0, 1, "name"), NodeRevoked(2.0, "n-1", "why")]


def test_events_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.append(EVENTS)
    journal.append(EVENTS[:1])
    journal.close()
    assert list(Journal(tmp_path / "j.sqlite").events()) == [*EVENTS, EVENTS[0]]


def test_what_was_appended_survives_kill_minus_nine(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from smalltalk_fed.core.events import NodeRevoked
        from smalltalk_fed.host.journal import Journal
        journal = Journal(Path(sys.argv[1]))
        for number in range(5):
            journal.append([NodeRevoked(float(number), "n", "why")])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "j.sqlite"
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], check=False)
    assert [event.at for event in Journal(path).events()] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_values_beside_the_events_are_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    assert journal.get("ledger") is None
    journal.put("ledger", [{"bytes": 3}])
    journal.put("ledger", [{"bytes": 4}])
    assert journal.get("ledger") == [{"bytes": 4}]


def test_a_file_that_is_no_journal_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(WorldError, match="can't be opened"):
        Journal(path)


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
    with pytest.raises(WorldError, match="format 99"):
        Journal(path)


def test_a_commit_that_fails_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    journal.append(EVENTS)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(
        "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    with pytest.raises(WorldError, match="full"):
        journal.append(EVENTS)
    other.execute("DROP TRIGGER full")
    assert list(journal.events()) == EVENTS
