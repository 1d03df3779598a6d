"""The coordinator's disk: the journal's rows and the snapshot that outlive a process.

Rules: a commit is whole or not there; rows are the real encoding of events. A snapshot is
kept beside them once in a while and may be older than the last row, never newer. Restarting
is what the real host does: the snapshot, and the rows after it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import snapshot
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.events import Event, from_json, to_json
from smalltalk_fed.core.state import HardState

_ROW_BYTES = 24  # of a journal's row beside its kind and body, about


class Disk:
    """Rows and a snapshot; `commit_s` is how long a commit takes now."""

    def __init__(self, commit_s: float) -> None:
        self.commit_s = commit_s
        self.rows: list[tuple[str, str]] = []
        self.journal_bytes = 0
        self.commits = 0
        self._covered = 0  # rows that the snapshot has in it
        self._snapshot = ""

    def write(self, events: Sequence[Event]) -> list[tuple[str, str]]:
        """One commit; returns its rows."""
        rows = [to_json(event) for event in events]
        self.rows += rows
        self.commits += 1
        self.journal_bytes += sum(len(kind) + len(body) + _ROW_BYTES for kind, body in rows)
        return rows

    @property
    def rows_since_snapshot(self) -> int:
        """Rows that a restart has to fold in."""
        return len(self.rows) - self._covered

    def keep_snapshot(self, covered: int, state: str) -> None:
        """Keep the state as of the first `covered` rows."""
        self._covered, self._snapshot = covered, state

    def recover(
        self, manifest: RunManifest, now: float, make: type[Coordinator], secret: bytes = b""
    ) -> Coordinator:
        """A coordinator as the disk has it; `secret` is what audits are drawn with."""
        state = None
        if self._snapshot:
            state = snapshot.from_json(manifest, json.loads(self._snapshot))
        events = (from_json(kind, body) for kind, body in self.rows[self._covered :])
        return make.replay(manifest, events, now, state, secret)


def take_snapshot(state: HardState) -> str:
    """The state as text."""
    return json.dumps(snapshot.to_json(state))
