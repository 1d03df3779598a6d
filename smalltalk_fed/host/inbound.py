"""What comes to the host's loop, and which of a node's results need a look at their blobs first.

Rules: a result that is said again changes nothing, and neither does an opinion that nobody asks
for any more; the blobs of either may be gone by then, which is no reason to refuse it. Whether
that is still so when its turn comes is looked at again: nothing counts unchecked.
"""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.results import changes_nothing
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result
from smalltalk_fed.errors import Refused


@dataclass(frozen=True)
class LostBlob:
    """A blob of ours is damaged or gone."""

    digest: str
    by_job: bool = False  # a job is waiting for it


@dataclass(frozen=True)
class Inbound:
    """Something for the loop; `checked`: results whose blobs were looked at."""

    message: msg.Request | jmsg.Outcome | LostBlob
    conversation: int = 0
    checked: tuple[Result, ...] = ()


def to_check(state: HardState, message: msg.Request) -> tuple[Result, ...]:
    """The results of `message` that may change something. Raises Malformed: one is of no unit."""
    if not isinstance(message, msg.Exchange):
        return ()
    said = (message.finished, message.collected)
    return tuple(each for each in said if each is not None and not changes_nothing(state, each))


def still_checked(state: HardState, message: msg.Request, checked: tuple[Result, ...]) -> None:
    """Raises Refused: the unit of a result that was passed over is open again by now."""
    for result in to_check(state, message):
        if result not in checked:
            raise Refused(f"{result.unit_id} is open again; hand it in once more")
