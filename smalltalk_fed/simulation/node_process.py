"""One start of a node's program: joins, converses through its session, until it ends or dies.

Rules: as `smalltalk-node run` does. A question that is refused is asked again after joining
anew; refused once more, it costs the unit, or ends the process if it was a plain question.
A coordinator that is not there is waited for. What the process knows dies with it; what the
machine's disk has does not (`machine.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.session import Session, answer_timeout_s
from smalltalk_fed.core.units import Result, Unit
from smalltalk_fed.errors import PeerError, Refused
from smalltalk_fed.simulation.network import Call
from smalltalk_fed.simulation.node_work import Work

if TYPE_CHECKING:
    from smalltalk_fed.simulation.machine import Machine

_TIMEOUT_S = 30.0
_JOIN_FIRST_S, _JOIN_LAST_S = 0.5, 60.0


class NodeProcess:
    """A process with a session and, at times, work."""

    def __init__(self, machine: Machine, incarnation: int) -> None:
        self._machine, self._world, self._shared = machine, machine.world, machine.shared
        self._incarnation = incarnation
        self._session: Session | None = None
        self._call: Call | None = None
        self._rejoined = False
        self._join_wait_s = _JOIN_FIRST_S
        self._wake_at = float("inf")
        self.asleep = False
        self.alive = True
        self.work = Work(machine, self._done, self._failed, self._collected)

    # ------------------------------------------------------------------- what happens to it

    def begin(self) -> None:
        """Enrol if this machine never did, then join."""
        if self._call is not None or not self._awake:
            return
        if self._machine.node_id:
            self._join()
            return
        enrol = msg.Enrol(self._shared.secret, self._machine.key_sha256, self._machine.name)
        self._call = self._machine.line.call(
            enrol, _TIMEOUT_S, self._enrolled, self._shut_out, self._try_again
        )

    def die(self, *, clean: bool) -> None:
        """Stop: at once, or by Ctrl-C, which tells the coordinator and keeps a checkpoint."""
        if self._call is not None:
            self._machine.line.abandon(self._call, killed=not clean)
            self._call = None
        self.work.stop(clean=clean)
        if clean and self._session is not None and not self.asleep:
            leave = msg.Leave(self._machine.node_id, self._incarnation, "stopped by its operator")
            self._machine.line.call(leave, 5.0, _ignore, _ignore, _nothing)
        self.alive = False

    def sleep(self) -> None:
        """SIGSTOP, or a closed lid."""
        self.asleep = True
        self.work.freeze()

    def wake(self) -> None:
        """Go on; the connection is broken."""
        self.asleep = False
        self.work.thaw()
        if self._call is not None:
            call, self._call = self._call, None
            self._machine.line.abandon(call, killed=True)
            if self._session is not None:
                self._rejoined = False
                self._session.lost(self._world.now, 0.0)
        if self._session is None:
            self.begin()
        else:
            self._look()

    # ---------------------------------------------------------------------------- taking part

    def _join(self) -> None:
        machine = self._machine
        capabilities = msg.Capabilities(
            tokens_per_s=machine.tokens_per_s,
            corpus_digest=self._shared.scenario.manifest.corpus_digest,
        )
        join = msg.Join(
            machine.node_id,
            self._incarnation,
            PROTOCOL_VERSIONS[-1],
            machine.signing_key,
            capabilities,
        )
        self._call = machine.line.call(
            join, _TIMEOUT_S, self._joined, self._shut_out, self._try_again
        )

    def _enrolled(self, answer: msg.Answer) -> None:
        assert isinstance(answer, msg.Enrolled)
        self._call, self._machine.node_id = None, answer.node_id
        self.begin()

    def _joined(self, answer: msg.Answer) -> None:
        self._call, self._join_wait_s = None, _JOIN_FIRST_S
        if self._session is None:
            self._session = Session(self._machine.node_id, self._incarnation)
        elif self._rejoined:
            self._session.joined(self._world.now)
        self._look()

    def _try_again(self) -> None:
        self._call = None
        wait_s = self._join_wait_s * (0.5 + 0.5 * self._machine.rng.random())
        self._join_wait_s = min(2 * self._join_wait_s, _JOIN_LAST_S)
        again = self.begin if self._session is None else self._join_again
        self._world.after(wait_s, again)

    def _join_again(self) -> None:
        if self._call is None and self._awake:
            self._join()

    def _shut_out(self, error: PeerError) -> None:
        self._call = None
        self._end(f"refused: {error}")

    # --------------------------------------------------------------------------- conversation

    def _look(self) -> None:
        """Say what is due, or plan when to look again."""
        session = self._session
        if session is None or self._call is not None or not self._awake:
            return
        if self.work.unit is not None:
            session.progress(self.work.fraction, {"tokens_per_s": self._machine.tokens_per_s})
        todo = session.tick(self._world.now)
        if todo.say is not None:
            self._ask(todo.say)
            return
        due = session.deadline()
        if due is not None and due < self._wake_at:
            self._wake_at = due
            self._world.at(due, self._wake, due)

    def _wake(self, due: float) -> None:
        if due == self._wake_at:
            self._wake_at = float("inf")
            self._look()

    def _ask(self, question: msg.Exchange) -> None:
        timeout_s = answer_timeout_s(question, self._shared.scenario.manifest.config.run)
        self._question = question
        self._call = self._machine.line.call(
            question, timeout_s, self._answered, self._refused, self._lost
        )

    def _answered(self, answer: msg.Answer) -> None:
        assert isinstance(answer, msg.Order) and self._session is not None
        self._call, self._rejoined = None, False
        unit = self._session.unit
        todo = self._session.handle(answer, self._world.now)
        if unit is not None and answer.accepted == unit.unit_id:
            self._machine.disk.pop(unit.unit_id, None)
        if todo.drop:
            self.work.stop(clean=True)
        if todo.start is not None:
            self._start(todo.start)
        if todo.end:
            self._end(todo.end)
        else:
            self._look()

    def _refused(self, error: PeerError) -> None:
        """As the real program: join anew once, then give up what was refused."""
        assert self._session is not None
        self._call, now = None, self._world.now
        if isinstance(error, Refused) and not self._rejoined:
            self._rejoined = True
            self._join()
            return
        question = self._question
        if not (question.working or question.finished or question.failed):
            self._end(f"refused: {error}")
            return
        if self._session.refused(str(error), now).drop:
            self.work.stop(clean=True)
        self._look()

    def _lost(self) -> None:
        assert self._session is not None
        self._call, self._rejoined = None, False  # whoever answers next may be a new process
        self._session.lost(self._world.now, self._machine.rng.random())
        self._look()

    # ----------------------------------------------------------------------------------- work

    def _start(self, unit: Unit) -> None:
        assert self._session is not None
        if self._machine.must_fail(unit):
            self._session.fail(unit.unit_id, "out of memory", self._world.now)
            return
        self.work.start(unit)

    def _done(self, result: Result) -> None:
        assert self._session is not None
        self._session.finish(result, self._world.now)
        self._look()

    def _failed(self, unit_id: str, reason: str) -> None:
        assert self._session is not None
        self._session.fail(unit_id, reason, self._world.now)
        self._look()

    def _collected(self, state: Result) -> None:
        assert self._session is not None
        self._session.collect(state, self._world.now)
        self._look()

    def _end(self, reason: str) -> None:
        """The program exits by itself."""
        self.work.stop(clean=True)
        self.alive = False
        self._machine.ended(reason)

    @property
    def _awake(self) -> bool:
        return self.alive and not self.asleep


def _ignore(answer: object) -> None:
    """Whoever asked is gone."""


def _nothing() -> None:
    """Whoever asked is gone."""
