"""`run --record-egress FILE`: every message that leaves is written down first, byte for byte.

Rules: a message that can't be written down does not leave (`outgoing` asks here first).
The file grows by what leaves and some 70 bytes a message, is its owner's alone (0600), and is
added to by later starts. Its format, and holding it against what is declared, is
`wire.egress_record`'s part.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

from smalltalk_fed.errors import WorldError
from smalltalk_fed.wire.egress_record import entry


class EgressRecorder:
    """Writes one file. Any thread may record."""

    def __init__(self, path: Path) -> None:
        """Raises WorldError when the file can't be opened."""
        self.path = path
        self.problem: WorldError | None = None  # why the last message did not leave
        self._lock = threading.Lock()
        self._streams = itertools.count(1)
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error

    def record(self, call: str, data: bytes, stream: int = 0) -> None:
        """Write one message. Raises WorldError: it was not written, and must not leave."""
        whole = entry(time.time(), call, data, stream)
        with self._lock:
            size = os.fstat(self._handle).st_size
            try:
                written = os.write(self._handle, whole)
                while written < len(whole):
                    written += os.write(self._handle, whole[written:])
                self.problem = None
            except OSError as error:
                os.ftruncate(self._handle, size)
                self.problem = self._unwritable(error)
                raise self.problem from error

    def new_stream(self) -> int:
        """A number for the messages of one upload."""
        return next(self._streams)

    def _unwritable(self, error: OSError) -> WorldError:
        return WorldError(
            f"what leaves can't be recorded in {self.path} ({error.strerror or error}), so nothing "
            "leaves; make room there, or start without --record-egress."
        )
