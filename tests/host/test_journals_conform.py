"""What every journal does, whatever it is made of: the file, and its naive twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.naive_stores import ListDisk, ListJournal

from smalltalk_fed.core.events import InviteMade, NodeRevoked, PhaseChanged
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host import journal as journal_module
from smalltalk_fed.host.journal import Journal, JournalLike

EVENTS = [
    InviteMade(1.0, "a" * 64, 2.0, 1, "name\nwith a line's end and ü\0"),
    NodeRevoked(2.0, "n-1", "why"),
    PhaseChanged(2.5, Trigger.PAUSE, Phase.PAUSED, "because"),
]
Open = Callable[[], JournalLike]


@pytest.fixture(params=["file", "list"])
def open_journal(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Opens the same journal again and again, as one process after the other would."""
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 4)
    disk = ListDisk()
    if request.param == "list":
        return lambda: ListJournal(disk)
    return lambda: Journal(tmp_path / "j.sqlite")


def numbered(count: int) -> list[NodeRevoked]:
    return [NodeRevoked(float(number), f"n-{number}", "why") for number in range(1, count + 1)]


def test_a_new_journal_is_empty(open_journal: Open) -> None:
    journal = open_journal()
    assert (journal.last_id, journal.last_at) == (0, 0.0)
    assert list(journal.events()) == []
    assert list(journal.events_after(0)) == []
    assert list(journal.snapshots()) == []
    journal.append([])
    assert journal.last_id == 0


def test_events_come_back_in_order_after_reopening(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(EVENTS)
    journal.append(EVENTS[:1])
    assert list(journal.events()) == [*EVENTS, EVENTS[0]]
    journal.close()
    again = open_journal()
    assert list(again.events()) == [*EVENTS, EVENTS[0]]
    assert again.last_id == 4
    assert again.last_at == 1.0
    again.append(EVENTS[1:])
    assert list(again.events_after(4)) == EVENTS[1:]
    assert again.last_at == 2.5


def test_events_that_come_while_others_are_read_don_t_disturb(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(numbered(3))
    reading = journal.events()
    first = next(reading)
    journal.append(numbered(2))
    assert [first, *reading][:3] == numbered(3)


@pytest.mark.parametrize("after", range(12))
def test_any_tail_can_be_read_before_and_after_compaction(open_journal: Open, after: int) -> None:
    journal = open_journal()
    journal.append(numbered(11))
    assert list(journal.events_after(after)) == numbered(11)[after:]
    for up_to in (6, 9):
        journal.keep_snapshot(up_to, b"state")
    journal.compact()
    assert list(journal.events_after(after)) == numbered(11)[after:]
    journal.close()
    again = open_journal()
    assert list(again.events_after(after)) == numbered(11)[after:]
    assert list(again.events()) == numbered(11)
    again.append(EVENTS)
    assert list(again.events()) == [*numbered(11), *EVENTS]


def test_the_last_two_snapshots_are_kept(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(numbered(9))
    for up_to in (2, 5, 9):
        journal.keep_snapshot(up_to, b"state at %d" % up_to)
        journal.compact()
    journal.close()
    kept = [(snapshot.up_to, snapshot.data) for snapshot in open_journal().snapshots()]
    assert kept == [(9, b"state at 9"), (5, b"state at 5")]


def test_a_snapshot_said_again_replaces_itself(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(numbered(9))
    journal.keep_snapshot(5, b"one")
    journal.keep_snapshot(9, b"two")
    journal.keep_snapshot(9, b"three")
    assert [snapshot.data for snapshot in journal.snapshots()] == [b"three", b"one"]


@pytest.mark.parametrize("up_to", [0, 4, -1])
def test_a_snapshot_is_of_an_event_that_is_there(open_journal: Open, up_to: int) -> None:
    journal = open_journal()
    journal.append(numbered(3))
    with pytest.raises(ValueError, match="there is no event"):
        journal.keep_snapshot(up_to, b"state")
    assert list(journal.snapshots()) == []


def test_values_beside_the_events_are_json(open_journal: Open) -> None:
    journal = open_journal()
    assert journal.get("ledger") is None
    journal.put("ledger", [{"bytes": 3}])
    journal.put("ledger", [{"bytes": 4}])
    journal.close()
    assert open_journal().get("ledger") == [{"bytes": 4}]


def test_a_closed_journal_takes_nothing(open_journal: Open) -> None:
    journal = open_journal()
    journal.close()
    with pytest.raises((WorldError, AttributeError)):
        journal.append(EVENTS)
