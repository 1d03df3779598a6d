"""Time for the host: seconds since the epoch that never jump and never go back.

The wall clock is read once; after that a monotonic clock carries it on, so that a clock set
an hour forward or back neither ends every lease nor keeps them for ever. A process that
starts with the wall clock behind the journal's last event goes on from that event: events
stay in order of time, and what has expired stays expired.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("smalltalk.clock")


class Clock(Protocol):
    """Anything that tells the time."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """Wall time at the start, but not before `not_before`; monotonic since.

    Args:
        not_before: a time that has passed for certain, in seconds since the epoch.
        wall, monotonic: the machine's clocks in seconds; tests give others.
    """

    def __init__(
        self,
        not_before: float = 0.0,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        start = wall()
        if start < not_before:
            log.warning(
                "the machine's clock is %.0f s behind the journal's last event: time goes on "
                "from that event; set the clock right",
                not_before - start,
            )
            start = not_before
        self._offset = start - monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._offset + self._monotonic()


class ManualClock:
    """A clock that moves when told to; for tests and simulation."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward."""
        self._now += seconds
