"""Virtual time: a queue of events, the only random streams, and the trace of what happened.

Rules: what happens is a function of the seed. Every purpose draws from a stream of its own
(`World.stream`), so that leaving one fault out does not change what the others do. Events at
the same time happen in the order in which they were planned. The trace's digest is the
identity of a run: same seed, same digest, in any process. It knows nothing of runs or nodes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

START_S = 1_760_000_000.0  # the epoch's seconds at which every world begins
DAY_S = 86400.0
_TRACE_LINES = 2048  # hashed at a time


class Trace:
    """What happened, as a digest; and as lines, if somebody wants to read them."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write
        self._digest = hashlib.blake2b(digest_size=16)
        self._lines: list[str] = []

    def note(self, now: float, what: str) -> None:
        """One line: seconds since the world's beginning, and what happened."""
        self._lines.append(f"{now - START_S:.6f} {what}\n")
        if len(self._lines) >= _TRACE_LINES:
            self._flush()

    def digest(self) -> str:
        """Hexadecimal digest of all lines so far."""
        self._flush()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        text = "".join(self._lines)
        self._lines.clear()
        self._digest.update(text.encode())
        if self._write is not None:
            self._write(text)


class World:
    """Time and chance. `run` lets events happen."""

    def __init__(self, seed: int, trace: Trace | None = None) -> None:
        self.seed = seed
        self.now = START_S
        self.trace = trace or Trace()
        self.events = 0
        self.stopped = False
        self._planned = 0
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now - START_S

    def stream(self, *purpose: str | int) -> random.Random:
        """The random stream for one purpose; seeded by text, so the same in every process."""
        return random.Random("/".join(map(str, (self.seed, *purpose))))

    def at(self, time: float, action: Callable[..., object], *arguments: Any) -> None:
        """Plan `action(*arguments)`; a time that has passed means now."""
        self._planned += 1
        heappush(self._queue, (max(time, self.now), self._planned, action, arguments))

    def after(self, delay_s: float, action: Callable[..., object], *arguments: Any) -> None:
        """Plan `action(*arguments)` in so many seconds."""
        self._planned += 1
        heappush(self._queue, (self.now + delay_s, self._planned, action, arguments))

    def note(self, what: str) -> None:
        """Put a line into the trace."""
        self.trace.note(self.now, what)

    def run(self, until: float) -> None:
        """Let events happen until `stopped`, until that time, or until none is left."""
        queue = self._queue
        while queue and not self.stopped:
            if queue[0][0] > until:
                self.now = until
                return
            self.now, _, action, arguments = heappop(queue)
            self.events += 1
            action(*arguments)
