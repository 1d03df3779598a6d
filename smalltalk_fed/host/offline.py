"""A run folder that nobody serves: the same decisions, under the lock, one at a time.

So that an operator can invite before the first `serve`, and look at a run that is stopped.
"""

from __future__ import annotations

from typing import Any

from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.assemble import take_out_withdrawn
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import Clock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.recovery import recover
from smalltalk_fed.host.seat_status import count_rows
from smalltalk_fed.host.status import run_status
from smalltalk_fed.telemetry.ledger import Ledger


def decide_offline(folder: RunFolder, message: msg.Request, clock: Clock) -> msg.Answer:
    """Handle `message` as a serving coordinator would, and commit what follows.

    Raises:
        UserError: a coordinator is using the folder.
        PeerError: the message is not acceptable.
    """
    with folder.locked():
        journal = Journal(folder.journal, create=False)
        try:
            now = max(clock.now(), journal.last_at)
            coordinator, _ = recover(folder.manifest, journal, now)
            ready = coordinator.handle(message, 1, now)
            journal.append(ready.events)
            blobs = BlobStore(folder.blobs)
            for digest in ready.released:
                blobs.drop(digest)
            take_out_withdrawn(folder, coordinator.state)
            return ready.replies[0].answer
        finally:
            journal.close()


def status_offline(folder: RunFolder, clock: Clock) -> dict[str, Any]:
    """The run as its journal has it; nodes are all away."""
    journal = Journal(folder.journal, create=False)
    try:
        now = max(clock.now(), journal.last_at)
        coordinator, _ = recover(folder.manifest, journal, now)
        ledger = Ledger.from_json(journal.get("ledger") or [])
        return {
            **run_status(coordinator, now),
            "bytes": {**ledger.totals(), "rows": ledger.to_json()},
            "counts": count_rows(coordinator.state, BlobStore(folder.blobs)),
            "coordinator": None,
            "mixture": str(folder.mixture) if folder.mixture.exists() else None,
        }
    finally:
        journal.close()
