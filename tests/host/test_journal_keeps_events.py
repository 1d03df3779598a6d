"""What was committed is there after a crash, and a commit that fails leaves nothing behind."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smalltalk_fed.core.events import InviteMade, NodeRevoked
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.journal import Journal

EVENTS = [InviteMade(1.0, "a" * 64, 2.0, 1, "name"), NodeRevoked(2.0, "n-1", "why")]
WRITER = """
    import sys
    from pathlib import Path
    from smalltalk_fed.core.events import NodeRevoked
    from smalltalk_fed.host import journal as module
    module.BATCH_EVENTS = 10
    journal = module.Journal(Path(sys.argv[1]))
    while True:
        first = journal.last_id
        journal.append([NodeRevoked(float(first + n), "n", "why") for n in range(7)])
        print(journal.last_id, flush=True)
        journal.keep_snapshot(journal.last_id, b"state")
        journal.compact()
"""


def test_a_new_journal_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    """`serve` makes it, and `status` looks at it, in the same moment."""
    together = threading.Barrier(4)

    def open_one(number: int) -> int:
        together.wait()
        journal = Journal(tmp_path / f"{number}.sqlite")
        journal.close()
        return journal.last_id

    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            assert list(pool.map(open_one, [number] * 4)) == [0] * 4


@pytest.mark.parametrize("commits", [1, 2, 5, 20])
def test_what_was_acknowledged_survives_kill_minus_nine(tmp_path: Path, commits: int) -> None:
    path = tmp_path / "j.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        acknowledged = [int(writer.stdout.readline()) for _ in range(commits)][-1]
        writer.kill()  # in the middle of a snapshot, a compaction or a commit
    journal = Journal(path)
    assert journal.verify() == journal.last_id >= acknowledged
    assert [event.at for event in journal.events()] == [float(n) for n in range(journal.last_id)]
    assert journal.last_id % 7 == 0, "a transaction is there whole or not at all"
    for snapshot in journal.snapshots():
        assert len(list(journal.events_after(snapshot.up_to))) == journal.last_id - snapshot.up_to
    journal.append(EVENTS)
    assert journal.verify() == journal.last_id


def test_a_commit_that_fails_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    journal.append(EVENTS)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(
        "CREATE TRIGGER full BEFORE INSERT ON events WHEN NEW.id > 3"
        " BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    with pytest.raises(WorldError, match="full"):
        journal.append(EVENTS)
    assert list(journal.events()) == EVENTS
    other.execute("DROP TRIGGER full")
    journal.append(EVENTS)
    assert list(journal.events()) == EVENTS * 2
    assert journal.verify() == 4


def test_two_writers_of_one_file_can_t_both_append(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "j.sqlite"), Journal(tmp_path / "j.sqlite")
    one.append(EVENTS)
    with pytest.raises(WorldError, match="can't be written"):
        other.append(EVENTS)
    assert list(one.events()) == EVENTS


def test_processes_that_open_a_new_journal_at_once_all_get_it(tmp_path: Path) -> None:
    """`status` looks at a run folder at the moment when `serve` begins."""
    program = """
        import sys
        from pathlib import Path
        from smalltalk_fed.host.journal import Journal
        print("ready", flush=True)
        sys.stdin.read()
        for number in range(20):
            Journal(Path(sys.argv[1], str(number))).close()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    pipe = subprocess.PIPE
    openers = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(4)]
    for opener in openers:
        assert opener.stdout
        assert opener.stdout.readline() == b"ready\n"
    for opener in openers:
        assert opener.stdin
        opener.stdin.close()
    assert [opener.wait() for opener in openers] == [0, 0, 0, 0]
