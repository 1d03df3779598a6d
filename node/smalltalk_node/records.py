"""What a node writes down for people: node-status.json (now) and metrics.jsonl (so far).

The status file is replaced at once, so that a reader sees a whole one; it is not made
durable, since it says only what is. Nothing here leaves the machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smalltalk_fed.core.session import Session
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.telemetry.ledger import Ledger

log = logging.getLogger("smalltalk.node")

STATUS_FILE = "node-status.json"
METRICS_FILE = "metrics.jsonl"
WRITE_EVERY_S = 0.5
SAY_WAITING_EVERY_S = 60.0


@dataclass
class NodeStatus:
    """What node-status.json says."""

    node_id: str
    name: str
    run_id: str = ""
    pid: int = field(default_factory=os.getpid)
    incarnation: int = 0
    state: str = "joining"  # joining, waiting, working, stopped
    reason: str = ""  # the coordinator's last one, or why this node stopped
    unit: str = ""
    fraction: float = 0.0
    tokens_per_s: float = 0.0
    router_tokens_per_s: float = 0.0  # of the last router round, of this process or one before
    figures: dict[str, float] = field(default_factory=dict)
    units_done: int = 0
    bytes: dict[str, int] = field(default_factory=dict)  # the ledger's totals
    updated_at: float = 0.0


class Records:
    """The two files of one process."""

    def __init__(self, folder: Path, status: NodeStatus) -> None:
        self.status = status
        self._status_path = folder / STATUS_FILE
        self._metrics_path = folder / METRICS_FILE
        self._written_at = self._said_at = float("-inf")
        status.router_tokens_per_s = _router_speed(self._status_path)

    def write_status(self, *, at_once: bool = False) -> None:
        """Write the status, at most every half second unless `at_once`."""
        moment = time.monotonic()
        if not at_once and moment - self._written_at < WRITE_EVERY_S:
            return
        self._written_at = moment
        self.status.updated_at = time.time()
        part = self._status_path.with_name(f".{STATUS_FILE}.part")
        # A full disk must not end the work that is under way.
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(asdict(self.status), sort_keys=True) + "\n")
            part.replace(self._status_path)

    def speed(self, unit_id: str, figures: dict[str, float]) -> None:
        """Note how fast a unit goes; those of router rounds are what nodes are compared by."""
        speed = figures.get("tokens_per_s", 0.0)
        if speed > 0:
            self.status.tokens_per_s = speed
            if UnitKey.parse(unit_id).kind in (UnitKind.ROUTER_ROUND, UnitKind.SILO_BLOCK):
                self.status.router_tokens_per_s = speed

    def show(
        self, session: Session, fraction: float, figures: dict[str, float], ledger: Ledger
    ) -> None:
        """Bring the status up to date; at once if this node does something else now."""
        status, unit = self.status, session.unit
        before = (status.state, status.unit)
        status.state = "working" if unit else "waiting"
        status.unit = unit.unit_id if unit else ""
        status.reason = session.reason
        status.fraction = fraction if unit else 0.0
        status.figures = dict(figures) if unit else {}
        status.bytes = ledger.totals()
        self.write_status(at_once=before != (status.state, status.unit))

    def waiting(self, error: Exception, wait_s: float) -> None:
        """Say that nobody answers; in the log only once in a while."""
        self.status.reason = str(error)
        self.write_status()
        moment = time.monotonic()
        if moment - self._said_at >= SAY_WAITING_EVERY_S:
            self._said_at = moment
            log.warning("%s Trying again, first in %.1f s.", error, wait_s)

    def answered(self) -> None:
        """Somebody answers again."""
        self._said_at = float("-inf")

    def end(self, reason: str, ledger: Ledger) -> None:
        """The last status and the last line of the metrics: what travelled, by kind."""
        status = self.status
        status.state, status.reason, status.unit = "stopped", reason, ""
        status.bytes = ledger.totals()
        self.metric("end", reason=reason, bytes=ledger.by_kind())
        self.write_status(at_once=True)

    def metric(self, event: str, **values: Any) -> None:
        """Append one line to the metrics."""
        line = {"at": time.time(), "event": event, "incarnation": self.status.incarnation}
        with contextlib.suppress(OSError), self._metrics_path.open("a") as file:
            file.write(json.dumps(line | values, sort_keys=True) + "\n")


def _router_speed(path: Path) -> float:
    """What an earlier process of this node noted; 0 if there was none."""
    try:
        speed = json.loads(path.read_text()).get("router_tokens_per_s", 0.0)
    except (OSError, RecursionError, ValueError, AttributeError):
        return 0.0
    return float(speed) if isinstance(speed, int | float) and 0 < speed < math.inf else 0.0
