"""How often a checkpoint may be taken, so that all of them cost a small share of the time.

Rules: what a checkpoint costs is what the training thread was held up plus the processor
time of the thread that wrote it (waiting for a disk costs training nothing). The next one is
due `every_s` after the last, but no sooner than its cost / `share`. The last one, at the end
of a training, must be waited for; it is worth that while all checkpoints together stay under
the share. Before the first, the cost is guessed from the size. No clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of one core: copying, writing and hashing, and what a disk takes until all is durable.
GUESSED_BYTES_PER_BUSY_S = 400e6
GUESSED_BYTES_PER_S = 100e6
GUESSED_LEAST_S = 0.005


@dataclass(frozen=True)
class Cost:
    """One checkpoint: seconds taken from training, and seconds until it was durable."""

    busy_s: float
    wall_s: float

    @classmethod
    def guess(cls, nbytes: int) -> Cost:
        """Return what so many bytes may cost on a slow machine."""
        return cls(
            GUESSED_LEAST_S + nbytes / GUESSED_BYTES_PER_BUSY_S,
            GUESSED_LEAST_S + nbytes / GUESSED_BYTES_PER_S,
        )


class Budget:
    """Says when; `now` is any clock that only goes forward, in seconds."""

    def __init__(self, every_s: float, share: float, expected: Cost, now: float) -> None:
        self.expected = expected
        self._every_s, self._share = every_s, share
        self._began = self._last = now
        self._spent_s = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time for the next one."""
        return now - self._last >= max(self._every_s, self.expected.busy_s / self._share)

    def worth_waiting(self, now: float) -> bool:
        """Whether a last one, which training waits for, still fits the share."""
        return self._spent_s + self.expected.wall_s <= self._share * (now - self._began)

    def took(self, cost: Cost, now: float) -> None:
        """A checkpoint was finished."""
        self._last, self.expected = now, cost
        self._spent_s += cost.busy_s
