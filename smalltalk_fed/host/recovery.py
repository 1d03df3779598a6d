"""From a journal to the state it tells of: the newest good snapshot and the events after it.

Rules: the result is what a replay of every event would give. A snapshot is only an aid: one
that can't be read (`snapshots.py` leaves damaged ones out already) is passed over with a
warning, at last for the replay of everything. An event that can't be read is an error.
"""

from __future__ import annotations

import json
import logging

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import snapshot as core_snapshot
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.state import HardState
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.journal import JournalLike

log = logging.getLogger("smalltalk.journal")


def recover(
    manifest: RunManifest, journal: JournalLike, now: float, secret: bytes = b""
) -> tuple[Coordinator, int]:
    """The coordinator as the journal has it (call its `start` next), and the snapshot's event.

    `secret`: what audits are drawn with, if it is going to hand out work.

    Raises:
        WorldError: the journal is damaged, of another version, or the disk refuses.
    """
    for kept in journal.snapshots():
        try:
            state = read_snapshot(manifest, kept.data)
        except WorldError as error:
            log.warning("the snapshot at event %d can't be used: %s", kept.up_to, error)
            continue
        tail = journal.events_after(kept.up_to)
        return Coordinator.replay(manifest, tail, now, state, secret), kept.up_to
    return Coordinator.replay(manifest, journal.events(), now, secret=secret), 0


def read_snapshot(manifest: RunManifest, data: bytes) -> HardState:
    """The state that `take_snapshot` took.

    Raises:
        WorldError: it is something else, or of another version.
    """
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        raise WorldError("a snapshot of the run's state is not JSON") from None
    return core_snapshot.from_json(manifest, table)


def take_snapshot(state: HardState) -> bytes:
    """The state as it is now; a few milliseconds for a thousand nodes."""
    return json.dumps(core_snapshot.to_json(state), allow_nan=False).encode()


def keep_snapshot(journal: JournalLike, up_to: int, taken: bytes) -> None:
    """Write what `take_snapshot` gave after event `up_to`, and let old events be compacted.

    Raises:
        WorldError: the disk refuses; the events are all there, and a later try may succeed.
    """
    journal.keep_snapshot(up_to, taken)
    journal.compact()
