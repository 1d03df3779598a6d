"""The hours of the day in which a node works, as its owner sets them.

Rules: local wall-clock time, looked at again and again, so that a changed clock, a suspended
machine and summer time need no care; spans may pass midnight. When the hours end, the node
leaves as on Ctrl-C: its leases go back at once, the unit in work leaves its checkpoint; when
they begin, it joins again as a new process of the same node would. What a program is, and how
it ends, is `program`'s part.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from smalltalk_fed.errors import UserError, shown
from smalltalk_fed.worksite.machine import WORKER_THREAD
from smalltalk_fed.worksite.signals import stop_on_signals

log = logging.getLogger("smalltalk.node")

LOOK_S = 1.0
ALWAYS = "always"
_SPAN = re.compile(r"(\d{1,2})(?::(\d{2}))?-(\d{1,2})(?::(\d{2}))?")


@dataclass(frozen=True)
class Hours:
    """Spans of the day, in minutes after midnight; the end is not part of one. None: always."""

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read `22-7` or `9:30-12,14-18`; an empty text or `always`: all day.

        Raises:
            UserError: it is something else.
        """
        if text.strip() in ("", ALWAYS):
            return cls()
        return cls(tuple(_span(part.strip(), text) for part in text.split(",")))

    def open(self, at: datetime) -> bool:
        """Whether the node may work at this local time."""
        minute = 60 * at.hour + at.minute
        return not self.spans or any(
            first <= minute < end if first < end else minute >= first or minute < end
            for first, end in self.spans
        )

    def next_start(self, at: datetime) -> str:
        """When they begin next, such as `22:00`; the empty string if they never end."""
        minute = 60 * at.hour + at.minute
        waits = [((first - minute - 1) % 1440, first) for first, _ in self.spans]
        return f"{min(waits)[1] // 60}:{min(waits)[1] % 60:02d}" if waits else ""


class Stint(Protocol):
    """What works between two rests: `program.Program`."""

    @property
    def stopped_by_hours(self) -> bool:
        """Whether the hours' end was why it stopped, and nobody else wanted it to."""
        ...

    def run(self) -> str:
        """Work until the run ends; raises KeyboardInterrupt when stopped."""
        ...

    def rest(self, reason: str) -> None:
        """End in good order, for now. Any thread may call it."""
        ...


def work_by_hours(
    hours: Hours,
    make: Callable[[], Stint],
    now: Callable[[], datetime] = datetime.now,
    look_s: float = LOOK_S,
) -> str:
    """Make a stint and run it whenever the hours are open, until one comes to the run's end.

    Returns its reason. Raises KeyboardInterrupt when stopped by a signal, and what a stint
    raises.
    """
    if not hours.spans:
        return make().run()
    while True:
        _rest(hours, now, look_s)
        stint = make()
        try:
            with _ended_in_time(stint, hours, now, look_s):
                return stint.run()
        except KeyboardInterrupt:
            if not stint.stopped_by_hours:
                raise
        _release_memory()


def _span(part: str, text: str) -> tuple[int, int]:
    found = _SPAN.fullmatch(part)
    if found:
        first_h, first_m, end_h, end_m = (int(group or 0) for group in found.groups())
        first, end = 60 * first_h + first_m, 60 * end_h + end_m
        if first < 1440 and end <= 1440 and max(first_m, end_m) < 60 and first != end:
            return first, end
    raise UserError(
        f"'{shown(text)}' are no hours of the day; write them like 22-7 or 9:30-12,14-18, or "
        f"'{ALWAYS}'."
    )


def _rest(hours: Hours, now: Callable[[], datetime], look_s: float) -> None:
    """Wait until the hours are open and nothing of the last stint computes any more."""
    stopped: list[bool] = []  # a signal handler must not touch a lock
    said = False
    with stop_on_signals(lambda: stopped.append(True)):
        while not hours.open(now()) or _still_computing():
            if not said and not hours.open(now()):
                said = True
                log.info("outside this node's hours; it works again at %s", hours.next_start(now()))
            time.sleep(look_s)
            if stopped:
                raise KeyboardInterrupt


@contextlib.contextmanager
def _ended_in_time(
    stint: Stint, hours: Hours, now: Callable[[], datetime], look_s: float
) -> Iterator[None]:
    """Tell the stint to rest when the hours are over."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(look_s):
            if not hours.open(now()):
                stint.rest(f"outside the hours that its owner set, until {hours.next_start(now())}")
                return

    threading.Thread(target=watch, name="hours", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _still_computing() -> bool:
    return any(thread.name == WORKER_THREAD for thread in threading.enumerate())


def _release_memory() -> None:
    """Give back what torch keeps for later; a GPU's context of some 500 MB stays."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
