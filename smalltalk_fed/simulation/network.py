"""The network between nodes and the coordinator: calls that may be late, lost or doubled.

Rules: a node opens every call; it gets an answer, a refusal, or nothing within its timeout
(`on_lost`). Requests and answers are delayed each by itself, so they overtake one another.
A partition swallows what is sent, and what arrives, while it lasts. A process that is killed
resets its connections, which the coordinator may or may not notice. Bulk transfers take the
time of the home's line and go on at their offset after an outage.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import PeerError
from smalltalk_fed.simulation import scenario as sc
from smalltalk_fed.simulation.measures import Measures
from smalltalk_fed.simulation.world import World

_TRANSFER_RETRY_S = 30.0
_OPERATOR = -1
_RESET_NOTICED = 0.5  # of killed processes: the coordinator sees the connection break


class Server(Protocol):
    """Who answers calls."""

    up: bool

    def receive(self, message: msg.Request, call: Call | None) -> None:
        """A request has arrived; `call.answer` is for its answer."""

    def hang_up(self, call: Call) -> None:
        """Whoever asked is gone."""


class Call:
    """One request under way."""

    __slots__ = ("conversation", "line", "message", "on_answer", "on_lost", "on_refused", "over")

    def __init__(
        self,
        line: Line,
        message: msg.Request,
        on_answer: Callable[[msg.Answer], None],
        on_refused: Callable[[PeerError], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.line, self.message = line, message
        self.on_answer, self.on_refused, self.on_lost = on_answer, on_refused, on_lost
        self.over = False
        self.conversation = 0  # the coordinator's number of it

    def answer(self, answer: msg.Answer | PeerError) -> None:
        """The coordinator's host lets the answer go."""
        self.line.send_back(self, answer)

    def break_off(self) -> None:
        """The connection broke: the caller learns it at once."""
        if not self.over:
            self.over = True
            self.on_lost()


class Line:
    """One machine's line to the coordinator."""

    def __init__(self, world: World, network: Network, number: int, model: sc.Network) -> None:
        self._world, self._network, self._model = world, network, model
        self._rng: Random = world.stream("network", number)
        factor = self._rng.lognormvariate(0.0, 0.5)
        self.up_bytes_per_s = model.up_bytes_per_s * factor
        self.down_bytes_per_s = model.down_bytes_per_s * factor
        self.cuts = 0  # partitions that this machine is in now

    @property
    def reachable(self) -> bool:
        """Whether something sent now would arrive."""
        return not self.cuts and self._network.server.up

    def call(
        self,
        message: msg.Request,
        timeout_s: float,
        on_answer: Callable[[msg.Answer], None],
        on_refused: Callable[[PeerError], None],
        on_lost: Callable[[], None],
    ) -> Call:
        """Send a request; exactly one of the three is called, unless it is abandoned."""
        call = Call(self, message, on_answer, on_refused, on_lost)
        world, model = self._world, self._model
        world.after(timeout_s, self._time_out, call)
        self._network.measures.message(world.now, message)
        if not self.cuts and (not model.loss or self._rng.random() >= model.loss):
            world.after(self._delay_s(), self._arrive, call, True)
            if model.duplicate and self._rng.random() < model.duplicate:
                world.after(self._delay_s(), self._arrive, call, False)
        return call

    def abandon(self, call: Call, *, killed: bool) -> None:
        """Nobody waits for the answer any more."""
        call.over = True
        if self.reachable and (not killed or self._rng.random() < _RESET_NOTICED):
            self._world.after(self._delay_s(), self._network.server.hang_up, call)

    def transfer(self, size: int, *, up: bool, then: Callable[[], None]) -> None:
        """Move a blob, whatever outages there are meanwhile."""
        seconds = size / (self.up_bytes_per_s if up else self.down_bytes_per_s)
        begun = self._world.now

        def arrive() -> None:
            if not self.reachable:
                self._world.after(_TRANSFER_RETRY_S * (1.0 + self._rng.random()), arrive)
                return
            self._network.measures.transfer(begun, self._world.now, size, up=up)
            then()

        self._world.after(seconds + self._delay_s(), arrive)

    def send_back(self, call: Call, answer: msg.Answer | PeerError) -> None:
        """An answer leaves the coordinator."""
        measures = self._network.measures
        measures.message(self._world.now, answer if not isinstance(answer, PeerError) else None)
        if self.cuts or (self._model.loss and self._rng.random() < self._model.loss):
            return
        self._world.after(self._delay_s(), self._deliver, call, answer)

    def reset(self, call: Call) -> None:
        """The coordinator's process died with this call open."""
        if not self.cuts:
            self._world.after(self._delay_s(), call.break_off)

    def _arrive(self, call: Call, first: bool) -> None:
        if self.cuts:
            return
        if not self._network.server.up:
            if first:
                self.reset(call)
            return
        self._network.server.receive(call.message, call if first else None)

    def _deliver(self, call: Call, answer: msg.Answer | PeerError) -> None:
        if call.over or self.cuts:
            return
        call.over = True
        if isinstance(answer, PeerError):
            call.on_refused(answer)
        else:
            call.on_answer(answer)

    def _time_out(self, call: Call) -> None:
        if not call.over:
            self.abandon(call, killed=False)
            call.on_lost()

    def _delay_s(self) -> float:
        model, rng = self._model, self._rng
        delay_s = model.latency_s * rng.lognormvariate(0.0, model.jitter)
        if model.late and rng.random() < model.late:
            delay_s += rng.expovariate(1.0 / model.late_s)
        return delay_s


class Network:
    """All lines, and who answers at their other end."""

    def __init__(self, world: World, model: sc.Network, measures: Measures) -> None:
        self._world, self._model = world, model
        self.measures = measures
        self.server: Server

    def line(self, number: int) -> Line:
        """The line of machine `number`."""
        return Line(self._world, self, number, self._model)

    def operator_line(self) -> Line:
        """The operator sits beside the coordinator: nothing is lost there but the coordinator."""
        return Line(self._world, self, _OPERATOR, sc.Network(latency_s=0.001))


def in_words(message: msg.Request, answer: msg.Answer) -> str:
    """An answer and whom it is for, as a line of the trace."""
    who = getattr(message, "node_id", "operator")
    if not isinstance(answer, msg.Order):
        return f"{who} {type(message).__name__} {type(answer).__name__}"
    unit = answer.unit.unit_id if answer.unit else ""
    return f"{who} {unit}|{answer.accepted}|{answer.cancel}|{answer.stop}|{answer.wait_s:g}"
