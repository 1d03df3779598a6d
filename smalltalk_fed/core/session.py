"""The node's mirror of the coordinator: what to say next, and what to work on.

Rules: at most one question is under way; a result is said again until it is answered; while
a unit is in work the node says so every `heartbeat_s`. The carrier reports a question that
got no answer within `answer_timeout_s` with `lost`; the time to the next try doubles up to a
minute (up to a heartbeat while a unit is in work), spread by a `jitter` in 0..1 that the
caller draws. No clock, no I/O, no threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smalltalk_fed.config.run import RunSection
from smalltalk_fed.core.messages import Exchange, Failure, Order, Working
from smalltalk_fed.core.units import Result, Unit

RETRY_FIRST_S = 0.5
RETRY_LAST_S = 60.0
HELD_MARGIN_S = 30.0  # beyond the time that a question for work is held
TIMEOUT_FIRST_S, TIMEOUT_LAST_S = 5.0, 30.0  # of a heartbeat


def answer_timeout_s(question: Exchange, run: RunSection) -> float:
    """Seconds to wait for the answer; a heartbeat that got lost must not cost the lease."""
    if question.wants_work and question.working is None:
        return run.poll_s + HELD_MARGIN_S
    return min(max(run.lease_s / 4, TIMEOUT_FIRST_S), TIMEOUT_LAST_S)


@dataclass(frozen=True)
class Todo:
    """What the caller must do: at most one of each."""

    say: Exchange | None = None
    start: Unit | None = None
    drop: str = ""  # unit id to stop working on
    end: str = ""  # the run is over for this node; the reason
    failed: bool = False  # with `end`: it did not end well


@dataclass
class Session:
    """One process of one node."""

    node_id: str
    incarnation: int
    unit: Unit | None = None
    reason: str = "not asked yet"
    ended: bool = False
    _asking: Exchange | None = None
    _next_at: float = 0.0
    _failed_tries: int = 0
    _heartbeat_s: float = 30.0
    _result: Result | None = None
    _failure: Failure | None = None
    _collected: Result | None = None
    _fraction: float = 0.0
    _figures: dict[str, float] = field(default_factory=dict)

    def tick(self, now: float) -> Todo:
        """Say what is due, if anything."""
        if self._asking or self.ended or now < self._next_at:
            return Todo()
        if self._result or self._failure or self.unit is None:
            question = Exchange(
                self.node_id, self.incarnation, finished=self._result, failed=self._failure
            )
        else:
            working = Working(self.unit.unit_id, self._fraction, dict(self._figures))
            question = Exchange(
                self.node_id,
                self.incarnation,
                working=working,
                wants_work=False,
                collected=self._collected,
            )
        self._asking = question
        return Todo(say=question)

    def deadline(self) -> float | None:
        """When `tick` has something to say; None while an answer is awaited."""
        return None if self._asking or self.ended else self._next_at

    def handle(self, order: Order, now: float) -> Todo:
        """Take the answer to the question under way."""
        question, self._asking, self._failed_tries = self._asking, None, 0
        self._heartbeat_s, self.reason = order.heartbeat_s, order.reason
        drop = ""
        if question and question.collected is self._collected:
            self._collected = None  # kept, or not wanted; the next one will be newer
        if question and question.finished and order.accepted == question.finished.unit_id:
            self._forget_unit(question.finished.unit_id)
        if question and question.failed:
            self._forget_unit(question.failed.unit_id)
        if self.unit and order.cancel == self.unit.unit_id:
            drop = order.cancel
            self._forget_unit(drop)
        if order.stop:
            self.ended = True
            drop = self.unit.unit_id if self.unit else drop
            return Todo(drop=drop, end=order.reason, failed=order.failed)
        if order.unit is not None and self.unit is None:
            self.unit, self._fraction, self._figures = order.unit, 0.0, {}
            self._next_at = now + self._heartbeat_s
            return Todo(start=order.unit, drop=drop)
        self._next_at = now + (self._heartbeat_s if self._busy else order.wait_s)
        return Todo(drop=drop)

    def lost(self, now: float, jitter: float, at_least_s: float = 0.0) -> float:
        """No answer came: the question is asked again. Returns the seconds until then.

        `at_least_s`: as the coordinator wishes, which was asked too often.
        """
        self._asking = None
        # Who is at work must be heard of before its lease, or the pause after a coordinator's
        # restart in which nothing is leased anew, is over.
        last_s = min(RETRY_LAST_S, self._heartbeat_s) if self.unit else RETRY_LAST_S
        wait_s = min(RETRY_FIRST_S * 2.0 ** min(self._failed_tries, 32), last_s) * (
            0.5 + 0.5 * jitter
        )
        self._failed_tries += 1
        wait_s = max(wait_s, at_least_s)
        self._next_at = now + wait_s
        return wait_s

    def joined(self, now: float) -> None:
        """This process was presented anew: the question under way is said again at once.

        A coordinator's new process answers, so it is not asked more slowly than before; it could
        be gone again by then, and the next one not know this node either.
        """
        self._asking, self._failed_tries, self._next_at = None, 0, now

    def refused(self, reason: str, now: float) -> Todo:
        """The coordinator won't take the question under way: give its unit up, and say so once."""
        question, self._asking, self._failed_tries = self._asking, None, 0
        self._next_at = now
        if question and question.finished:
            self._result = None
            self._failure = Failure(question.finished.unit_id, f"result refused: {reason}")
            return Todo()
        if question and question.collected:
            self._collected = None  # the unit itself may be fine; the next heartbeat shows
            return Todo()
        unit_id = self.unit.unit_id if self.unit else ""
        self._forget_unit(unit_id)
        return Todo(drop=unit_id)

    def progress(self, fraction: float, figures: dict[str, float]) -> None:
        """What the next heartbeat says of the unit in work."""
        self._fraction, self._figures = fraction, figures

    def collect(self, state: Result, now: float) -> None:
        """The unit's weights part-way are uploaded; the next heartbeat says so, at once."""
        if self._busy and self.unit and self.unit.unit_id == state.unit_id:
            self._collected, self._next_at = state, now

    def finish(self, result: Result, now: float) -> None:
        """The unit is done and its outputs are uploaded."""
        if self.unit and self.unit.unit_id == result.unit_id:
            self._result, self._next_at = result, now

    def fail(self, unit_id: str, reason: str, now: float) -> None:
        """The unit can't be done here."""
        if self.unit and self.unit.unit_id == unit_id:
            self._failure, self._next_at = Failure(unit_id, reason), now

    @property
    def _busy(self) -> bool:
        return self.unit is not None and not self._result and not self._failure

    def _forget_unit(self, unit_id: str) -> None:
        if self.unit and self.unit.unit_id == unit_id:
            self.unit = self._result = self._failure = self._collected = None
