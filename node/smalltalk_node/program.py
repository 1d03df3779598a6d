"""`smalltalk-node run`: joins, then asks for work, does it, hands it in, until the run ends.

Rules: this thread has the conversation (`core.session` says what is due), another does the
work (`worker`), so that heartbeats go out while a unit is computed; a question that may be
held is only asked while there is nothing to do. A coordinator that is not there is waited
for, with growing, jittered pauses, and said so once in a while. A question that is refused
is asked again after joining anew, since a restarted coordinator knows no presence. Ctrl-C
hands leases back; a second one ends at once.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.run import RunSection
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.session import Session, Todo, answer_timeout_s
from smalltalk_fed.errors import (
    Malformed,
    PeerError,
    Refused,
    SlowDown,
    SmalltalkError,
    TooLarge,
    UserError,
    WorldError,
)
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.cache import BlobCache
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.limits import refuse
from smalltalk_fed.worksite.privacy_limit import TOLD, CostsTooMuch
from smalltalk_fed.worksite.signals import stop_on_signals
from smalltalk_node.arrival import Arrival, Wait
from smalltalk_node.connection import Connection
from smalltalk_node.joining import Renewal
from smalltalk_node.options import Options
from smalltalk_node.outcomes import Outcomes
from smalltalk_node.records import NodeStatus, Records
from smalltalk_node.worker import Worker

log = logging.getLogger("smalltalk.node")

STOPPED = "stopped by its operator"
LOOK_EVERY_S = 0.5
LEAVE_S = 5.0
END_S = 5.0
CHECKPOINT_S = 120.0  # a large expert's takes a while; a second Ctrl-C does not wait


class Program:
    """One start of a node. `run` once; the folder must be locked."""

    def __init__(self, folder: NodeFolder, options: Options) -> None:
        self._folder, self._options = folder, options
        self._clock = SystemClock()
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._identity = folder.identity()
        self._incarnation = folder.next_incarnation(self._clock.now())
        self._arrival = Arrival(folder, options, self._incarnation)
        self._ledger = Ledger()
        self._connection = Connection(folder, self._identity, self._ledger, options.outgoing())
        self._renewal = Renewal(folder, self._connection)
        status = NodeStatus(self._identity.node_id, self._identity.name)
        status.incarnation = self._incarnation
        self._records = Records(folder.path, status)
        self._session = Session(self._identity.node_id, self._incarnation)
        self._outcomes = Outcomes(self._session, self._records, self._ledger)
        self._rejoined = False
        self._resting = ""  # why it stops for now

    # ------------------------------------------------------------------------------ the run

    def run(self) -> str:
        """Take part until the run ends; returns the coordinator's reason.

        Raises:
            KeyboardInterrupt: stopped by a signal; the coordinator was told.
            PeerError: shut out, with the reason.
            UserError: the corpus is not the run's, or the run exceeds the owner's limits.
            WorldError: this machine can't work, such as for a full disk.
        """
        worker: Worker | None = None
        with stop_on_signals(self.stop):
            try:
                manifest = self._take_part()
                device, limits = self._options.compute_device, self._options.limits
                corpus = self._arrival.corpus
                worker = Worker(
                    Workplace.inside(
                        self._folder, manifest, corpus, device, limits, self._arrival.public
                    ),
                    BlobCache(self._folder.place("cache")),
                    self._connection,
                    self._folder.signing_key(),
                    self._incarnation,
                    self._woken.set,
                )
                reason = self._converse(worker, manifest)
                worker.stop(END_S)
                worker.run_finished()
                return reason
            except SmalltalkError as error:
                self._records.end(str(error), self._ledger)
                raise
            except KeyboardInterrupt:
                reason = self._resting or STOPPED
                self._leave(worker, reason)
                self._records.end(reason, self._ledger)
                raise
            finally:
                if worker is not None:
                    worker.stop(END_S)
                self._connection.close()

    def stop(self) -> None:
        """End in good order: `run` raises KeyboardInterrupt. For any thread or signal handler."""
        self._resting = ""
        self._end_soon()
        log.info("stopping; once more stops at once")

    def rest(self, reason: str) -> None:
        """As `stop`, but for now only; `reason` is told to the coordinator."""
        if not self._stopping.is_set():
            self._resting = reason
            self._end_soon()
            log.info("%s", reason)

    @property
    def stopped_by_hours(self) -> bool:
        """Whether it was told to `rest`, and not to `stop`."""
        return bool(self._resting)

    def _end_soon(self) -> None:
        self._stopping.set()
        self._woken.set()
        self._connection.interrupt()

    def _converse(self, worker: Worker, manifest: RunManifest) -> str:
        run = manifest.config.run
        while not self._stopping.is_set():
            self._outcomes.take(worker, self._clock.now())
            self._renewal.when_due(self._clock.now())
            now = self._clock.now()
            todo = self._session.tick(now)
            if todo.say is None:
                due = self._session.deadline()
                self._woken.wait(min(LOOK_EVERY_S, max(0.0, due - now) if due else LOOK_EVERY_S))
                self._woken.clear()
                continue
            todo = self._ask(todo.say, run, worker)
            if todo.drop:
                worker.drop(todo.drop)
            if todo.start:
                log.info("work", extra={"facts": {"unit": todo.start.unit_id}})
                worker.start(todo.start)
            if todo.end:
                self._records.end(todo.end, self._ledger)
                if todo.failed:
                    raise Refused(f"no more work here: {todo.end}")
                return todo.end
            self._outcomes.show(worker)
        raise KeyboardInterrupt

    def _ask(self, question: msg.Exchange, run: RunSection, worker: Worker) -> Todo:
        """One question; its answer, or what its failure means."""
        unit = self._session.unit
        try:
            order = self._connection.exchange(question, answer_timeout_s(question, run))
        except Refused as error:
            if self._rejoined:
                return self._refused(question, error)
            self._rejoined = True
            log.info("joining again: %s", error)
            self._arrival.join(*self._presenting())
            self._session.joined(self._clock.now())
            return Todo()
        except (Malformed, TooLarge) as error:
            return self._refused(question, error)
        except (WorldError, SlowDown) as error:
            self._rejoined = False  # whoever answers next may be a new process
            asked_s = error.wait_s if isinstance(error, SlowDown) else 0.0
            wait_s = self._session.lost(self._clock.now(), random.random(), asked_s)
            self._say_waiting(error, wait_s)
            return Todo()
        self._rejoined = False
        self._records.answered()
        todo = self._session.handle(order, self._clock.now())
        if unit is not None and order.accepted == unit.unit_id:
            worker.settled(unit)
            self._records.status.units_done += 1
        return todo

    def _refused(self, question: msg.Exchange, error: PeerError) -> Todo:
        if not (question.working or question.finished or question.failed):
            raise error  # a plain question for work: saying it again would not help
        log.warning("refused: %s", error)
        return self._session.refused(str(error), self._clock.now())

    # -------------------------------------------------------------------------- taking part

    def _take_part(self) -> RunManifest:
        """Join, and check what the run is before anything is done for it."""
        self._renewal.when_due(self._clock.now())
        manifest = self._arrival.learn(*self._presenting())
        try:
            refuse(manifest, self._options.limits, on_gpu=self._options.on_gpu)
        except UserError as error:
            self._leave(None, str(error))
            raise
        try:
            self._arrival.present(*self._presenting())
        except CostsTooMuch:
            self._leave(None, TOLD)  # and not what it would cost: that tells of the text
            raise
        self._records.status.run_id = manifest.run_id
        machine.settle_threads(self._options.threads, manifest.config.compute.threads)
        facts = {"run": manifest.run_id, "node": self._connection.node_id}
        log.info("joined", extra={"facts": facts})
        return manifest

    def _presenting(self) -> tuple[Connection, Wait, float]:
        """With what this process presents itself."""

        def wait(error: WorldError | SlowDown, wait_s: float) -> None:
            self._say_waiting(error, wait_s)
            if self._stopping.wait(wait_s):
                raise KeyboardInterrupt

        return self._connection, wait, self._records.status.router_tokens_per_s

    def _say_waiting(self, error: WorldError | SlowDown, wait_s: float) -> None:
        if not self._stopping.is_set():
            self._records.waiting(error, wait_s)

    # --------------------------------------------------------------------------------- ending

    def _leave(self, worker: Worker | None, reason: str) -> None:
        """Hand leases back, if anybody listens; let the unit in work leave its checkpoint."""
        if worker is not None:
            worker.stop(0.0)
        leave = msg.Leave(self._identity.node_id, self._incarnation, reason)
        with contextlib.suppress(SmalltalkError):
            self._connection.leave(leave, LEAVE_S)
        if worker is not None:
            worker.stop(CHECKPOINT_S)
