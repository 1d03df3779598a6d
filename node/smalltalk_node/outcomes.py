"""What the worker did, told to the session and written down for people.

Rules: a unit that this machine can't do for its own reasons is handed back; after three in a row
it is the machine that needs help, and the node ends with that error.
"""

from __future__ import annotations

import logging

from smalltalk_fed.core.session import Session
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_node.records import Records
from smalltalk_node.worker import Collected, Failed, Finished, Worker

log = logging.getLogger("smalltalk.node")

WORLD_FAILURES_MAX = 3  # units in a row that this machine could not do for its own reasons


class Outcomes:
    """Of one process; called by the thread that has the conversation."""

    def __init__(self, session: Session, records: Records, ledger: Ledger) -> None:
        self._session, self._records, self._ledger = session, records, ledger
        self._world_failures = 0

    def take(self, worker: Worker, now: float) -> None:
        """Pass on what happened since the last call, and where the unit in work is.

        Raises:
            WorldError: this machine can't do one unit after the other.
        """
        outcomes, progress = worker.take(), worker.progress()
        for outcome in outcomes:
            match outcome:
                case Finished(result, seconds):
                    self._world_failures = 0
                    facts = {"unit": result.unit_id, "seconds": round(seconds, 2)}
                    log.info("done", extra={"facts": facts})
                    self._records.metric("unit", **facts, figures=result.figures)
                    self._records.speed(result.unit_id, result.figures)
                    self._session.finish(result, now)
                case Collected(result):
                    self._session.collect(result, now)
                case Failed():
                    self._failed(outcome, now)
        if progress is not None:
            self._records.speed(progress.unit_id, progress.figures)
            if self._session.unit and self._session.unit.unit_id == progress.unit_id:
                self._session.progress(progress.fraction, progress.figures)
        self.show(worker)

    def show(self, worker: Worker) -> None:
        """Bring node-status.json up to date."""
        progress = worker.progress()
        fraction, figures = (progress.fraction, progress.figures) if progress else (0.0, {})
        self._records.show(self._session, fraction, figures, self._ledger)

    def _failed(self, failed: Failed, now: float) -> None:
        facts = {"unit": failed.unit_id}
        log.warning("can't be done here: %s", failed.reason, extra={"facts": facts})
        self._records.metric("failure", **facts, reason=failed.reason)
        self._session.fail(failed.unit_id, failed.reason, now)
        self._world_failures = self._world_failures + 1 if failed.world else 0
        if failed.world and self._world_failures >= WORLD_FAILURES_MAX:
            raise failed.world
