"""The coordinator's status as a stream: `smalltalk-coordinator status --json --watch`.

A thread reads the lines; `latest` is the newest object. One process for the whole run, so
that asking costs the nodes' processors next to nothing.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from smalltalk_fed.demo.children import Child, Children
from smalltalk_fed.errors import WorldError


class StatusStream:
    """Follows one coordinator; `close` ends the process."""

    def __init__(self, children: Children, command: list[str]) -> None:
        self._children = children
        self._child = children.start("coordinator-status", command, pipe=True)
        self._latest: dict[str, Any] | None = None
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._read, name="status", daemon=True)
        self._thread.start()

    def next(self, limit_s: float = 60.0) -> dict[str, Any]:
        """The newest status that was not given out before; waits for one.

        Raises:
            WorldError: a child process failed, or nothing comes for `limit_s` seconds.
        """
        end = time.monotonic() + limit_s
        while not self._news.wait(timeout=0.5):
            self._children.check()
            if time.monotonic() > end:
                raise WorldError(f"the coordinator has said nothing for {limit_s:.0f} s.")
        self._news.clear()
        assert self._latest is not None
        return self._latest

    def close(self) -> None:
        """End the process and its thread."""
        self._children.end(self._child)
        self._thread.join(timeout=5.0)

    def _read(self) -> None:
        lines = self._child.process.stdout
        assert lines is not None
        try:
            for line in lines:
                if line.strip():
                    self._latest = json.loads(line)
                    self._news.set()
        except ValueError:  # closed, or cut off in the middle of a line, at the end
            return


def wait_for_line(child: Child, text: str, limit_s: float) -> None:
    """Until a program has written `text` to its log.

    Raises:
        WorldError: it ended, or `limit_s` passed.
    """
    end = time.monotonic() + limit_s
    while text not in child.log.read_text(encoding="utf-8", errors="replace"):
        child.check()
        if child.ended or time.monotonic() > end:
            raise WorldError(f"{child.name} did not start within {limit_s:.0f} s; see {child.log}.")
        time.sleep(0.1)
