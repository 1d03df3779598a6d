"""The thread that does work units: fetch, compute, upload, sign; the conversation goes on.

Rules: one unit at a time, in the order they were started; a unit that was dropped stops at
its next step and leaves its checkpoint, also for the same unit when it comes again. The
network's silence is waited out for as long as the unit is wanted (`patience`); every other
error ends the unit with a sentence for the coordinator. What happened is handed over in
`take`, since the session belongs to the conversation's thread; `wake` tells it to look.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.errors import WorldError
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.cache import BlobCache
from smalltalk_fed.worksite.folders import (
    Workplace,
    forget_run,
    forget_unit,
    unit_folder,
)
from smalltalk_fed.worksite.guard import Guard
from smalltalk_fed.worksite.machine import WORKER_THREAD
from smalltalk_fed.worksite.unit_work import (
    Signer,
    inputs_needed,
    made_here,
    outputs_named,
    why_not,
)
from smalltalk_fed.worksite.work import Done, do_unit
from smalltalk_node.collecting import Collector
from smalltalk_node.connection import Connection
from smalltalk_node.patience import Dropped, patiently, upload
from smalltalk_node.transfer import get_blob

log = logging.getLogger("smalltalk.node")


@dataclass(frozen=True)
class Finished:
    """A unit is done, uploaded and signed."""

    result: Result
    seconds: float


@dataclass(frozen=True)
class Collected:
    """The weights of an unfinished expert are uploaded and signed."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """A unit can't be done here. `ours`: the machine's trouble, such as a full disk."""

    unit_id: str
    reason: str
    world: WorldError | None = None


@dataclass
class Progress:
    """Where the unit in work is."""

    unit_id: str
    fraction: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class _Task:
    unit: Unit
    stop: threading.Event = field(default_factory=threading.Event)


Outcome = Finished | Collected | Failed


class Worker:
    """Make it, `start` units, `take` what came of them."""

    def __init__(
        self,
        place: Workplace,
        cache: BlobCache,
        connection: Connection,
        signing_key: SigningKey,
        incarnation: int,
        wake: Callable[[], None],
    ) -> None:
        self._place, self._cache, self._connection = place, cache, connection
        self._guard = Guard(place, cache)
        self._signing_key, self._incarnation, self._wake = signing_key, incarnation, wake
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wanted: dict[str, _Task] = {}
        self._outcomes: list[Outcome] = []
        self._progress: Progress | None = None
        self._thread = threading.Thread(target=self._work, name=WORKER_THREAD, daemon=True)
        self._thread.start()

    # ------------------------------------------------------ called by the conversation's thread

    def start(self, unit: Unit) -> None:
        """Do `unit` when what came before is done or stopped."""
        task = _Task(unit)
        with self._lock:
            self._wanted[unit.unit_id] = task
        self._tasks.put(task)

    def drop(self, unit_id: str) -> None:
        """Stop working on a unit; nothing will be said of it."""
        with self._lock:
            task = self._wanted.pop(unit_id, None)
        if task is not None:
            task.stop.set()

    def take(self) -> list[Outcome]:
        """What happened since the last call."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def progress(self) -> Progress | None:
        """Where the unit in work is, if one is."""
        with self._lock:
            now = self._progress
            return replace(now, figures=dict(now.figures)) if now else None

    def settled(self, unit: Unit) -> None:
        """The unit's result counts: its checkpoints are not needed any more."""
        forget_unit(self._place, unit)

    def run_finished(self) -> None:
        """No checkpoint is needed any more; call it when this has stopped."""
        if not self._thread.is_alive():
            forget_run(self._place)

    def stop(self, wait_s: float) -> None:
        """Stop everything; wait for the thread so long at the most."""
        with self._lock:
            tasks, self._wanted = list(self._wanted.values()), {}
        for task in tasks:
            task.stop.set()
        self._tasks.put(None)
        self._thread.join(wait_s)

    # ------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if task.stop.is_set():
                continue
            unit_id, began = task.unit.unit_id, time.monotonic()
            outcome: Outcome | None = None
            with self._lock:
                self._progress = Progress(unit_id)
            try:
                outcome = Finished(self._do(task), time.monotonic() - began)
            except Dropped:
                log.info("dropped", extra={"facts": {"unit": unit_id}})
            except Exception as error:
                outcome = Failed(unit_id, *why_not(self._place.manifest, unit_id, error))
            with self._lock:
                self._progress = None
                wanted = self._wanted.get(unit_id) is task
                if wanted and outcome is not None:
                    del self._wanted[unit_id]
                    self._outcomes.append(outcome)
            self._wake()

    def _do(self, task: _Task) -> Result:
        from smalltalk_fed.train.plan import Stopped

        unit = task.unit
        refs = inputs_needed(self._place, self._cache, self._guard, unit)
        inputs = {ref.name: self._fetch(task, ref) for ref in refs}

        def on_progress(fraction: float, figures: dict[str, float]) -> None:
            with self._lock:
                if self._progress is not None:
                    self._progress.fraction = min(1.0, max(0.0, fraction))
                    finite = {k: v for k, v in figures.items() if math.isfinite(v)}
                    self._progress.figures.update(finite)

        collector = Collector(
            unit,
            unit_folder(self._place, unit),
            lambda ref, path, stop: upload(self._connection, ref, unit.unit_id, path, stop),
            lambda state: self._collected(task, state),
        )
        should_stop = self._guard.watched(task.stop.is_set, task.stop.wait)
        try:
            done = do_unit(unit, inputs, self._place, on_progress, collector.on_state, should_stop)
        except Stopped:
            self._guard.after_stop()
            raise Dropped from None
        finally:
            collector.close()
        return self._hand_in(task, done)

    def _collected(self, task: _Task, state: Result) -> None:
        """An unfinished expert's weights are uploaded; called by the collector's thread."""
        with self._lock:
            if self._wanted.get(state.unit_id) is not task:
                return
            self._outcomes.append(Collected(self._signed(task.unit, state)))
        self._wake()

    def _fetch(self, task: _Task, ref: BlobRef) -> Path:
        known = made_here(self._place, task.unit, ref)
        if known is not None:
            return known
        stop = task.stop.is_set
        return patiently(
            task.stop,
            lambda: self._cache.get(ref, lambda r, to: get_blob(self._connection, r, to, stop)),
        )

    def _hand_in(self, task: _Task, done: Done) -> Result:
        unit, refs = task.unit, []
        for ref, source in outputs_named(unit, done, self._cache):
            upload(self._connection, ref, unit.unit_id, source, task.stop)
            refs.append(ref)
        return self._signed(unit, Result(unit.unit_id, tuple(refs), dict(done.figures)))

    def _signed(self, unit: Unit, result: Result) -> Result:
        node_id, run_id = self._connection.node_id, self._place.manifest.run_id
        return Signer(self._signing_key, run_id, node_id, self._incarnation).signed(unit, result)
