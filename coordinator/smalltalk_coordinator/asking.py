"""What a command asks: of the coordinator that serves a run, or of the folder if none does."""

from __future__ import annotations

from typing import Any

from smalltalk_coordinator.operator_client import Asked, NotServing, OperatorClient
from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.offline import decide_offline, status_offline


def ask(run: RunFolder, message: Asked) -> str:
    """Let the coordinator that serves `run` decide, or decide here; returns what happened.

    Raises:
        PeerError: refused, with the reason.
        UserError: a coordinator has the folder and does not answer.
    """
    with OperatorClient(run) as client:
        try:
            return client.do(message)
        except NotServing:
            pass
    answer = decide_offline(run, message, SystemClock())
    return answer.reason if isinstance(answer, msg.Done) else str(answer)


def status_of(run: RunFolder) -> dict[str, Any]:
    """The run as plain data; "serving" says where it comes from."""
    with OperatorClient(run) as client:
        try:
            return {**client.status(), "serving": True}
        except NotServing:
            return {**status_offline(run, SystemClock()), "serving": False}
