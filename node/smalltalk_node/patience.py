"""Fetching and uploading as long as they are wanted: the network's silence is waited out.

Rules: the work is worth more than the wait, so neither nobody's answer nor one that asks for
patience ends anything; waits double up to a minute, jittered, after what was asked for. An
event ends it at once, between two parts of a transfer too. An upload that is refused is begun
anew a few times, since a copy of the unit may be uploading the same bytes.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed, OurError, Refused, SlowDown
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import NoAnswer
from smalltalk_node.transfer import put_blob

T = TypeVar("T")
log = logging.getLogger("smalltalk.node")

RETRY_FIRST_S = 0.5
RETRY_LAST_S = 60.0
UPLOAD_TRIES = 3


class Dropped(Exception):
    """What was being done is not wanted any more."""


def patiently(stop: threading.Event, act: Callable[[], T]) -> T:
    """Do `act`, again and again while nobody answers, or while it comes too often.

    Raises Dropped when `stop` is set, and what `act` raises but NoAnswer and SlowDown.
    """
    wait_s = RETRY_FIRST_S
    while True:
        try:
            if stop.is_set():
                raise Dropped
            return act()
        except (NoAnswer, SlowDown) as error:
            log.debug("%s trying again in %.0f s", error, wait_s)
            spread_s = wait_s * (0.5 + 0.5 * random.random())
            stop.wait(spread_s + (error.wait_s if isinstance(error, SlowDown) else 0.0))
            wait_s = min(2 * wait_s, RETRY_LAST_S)


def upload(
    connection: Connection,
    ref: BlobRef,
    unit_id: str,
    source: bytes | Path,
    stop: threading.Event,
) -> None:
    """Upload an output of a unit. Raises Dropped, and PeerError when it is refused for good."""
    for left in reversed(range(UPLOAD_TRIES)):
        try:
            patiently(stop, lambda: put_blob(connection, ref, unit_id, source, stop.is_set))
            return
        except (Refused, Malformed):
            if not left:
                raise
            stop.wait(RETRY_FIRST_S)
    raise OurError("an upload was tried no more; this is a bug")
