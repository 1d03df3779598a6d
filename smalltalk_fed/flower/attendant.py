"""One Flower node's part in the conversation, held by the ServerApp on its behalf.

    meet     query.join: who it is (`meeting`)
    work     core.session asks the host for units; each goes out as turns until it is done
    end      query.end: the run is over; the node's checkpoints may go

Rules: Flower's nodes don't ask, they are sent messages; so the node's `Session` lives here, and
while a message is out this says to the core that the node is at its unit. That it still is, is
Flower's to know: a node that can't be reached, or says that it can't work, gives its lease back
at once and is met anew later; a turn whose process died is sent again, and counts as the unit's
failure when that has happened `CRASHES_MAX` times in a row. A unit that does not get on from one
turn to the next gets twice the time. Inputs that the node should have are not sent; if it misses
one, it says so. Results are checked as those of the native carrier are.
"""

from __future__ import annotations

import asyncio
import logging
import random

from google.protobuf.message import DecodeError

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.session import Session, Todo
from smalltalk_fed.core.units import Result, Unit, UnitKind
from smalltalk_fed.errors import (
    Malformed,
    PeerError,
    Refused,
    SmalltalkError,
    WorldError,
    shown,
)
from smalltalk_fed.flower.counter import Counter
from smalltalk_fed.flower.meeting import meet
from smalltalk_fed.flower.post import NoAnswer, NoLink, Post
from smalltalk_fed.flower.turns import END, EVALUATE, TRAIN, Order, Report
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert

log = logging.getLogger("smalltalk.flower")

EVALUATIONS = (UnitKind.EVALUATE, UnitKind.EVALUATE_SILO)
CRASHES_MAX = 3
END_WAIT_S = 120.0


class TakesNoPart(Refused):
    """A node that can't work for now, with its reason: no unit's fault."""


class Attendant:
    """Takes one Flower node through the run."""

    def __init__(self, flower_node: int, post: Post, counter: Counter, turn_s: float) -> None:
        self._flower_node, self._post, self._counter = flower_node, post, counter
        self._turn_s = self._limit_s = turn_s
        self._session = Session("", 0)
        self._welcome = b""
        self._at_node: set[str] = set()  # digests of blobs that it should have
        self._turn: asyncio.Task[Report] | None = None
        self._unit: Unit | None = None  # of the turn
        self._fraction = -1.0  # of the unit, when its last turn ended
        self._crashes = 0  # of turns, in a row

    async def attend(self) -> None:
        """Until the run ends, or the node is gone.

        Raises:
            NoAnswer: it can't be reached any more; its lease is free.
            TakesNoPart: it says that it can't work for now; its lease is free.
            PeerError: it can't take part.
            NoLink: Flower's SuperLink can't be asked any more.
            WorldError: the coordinator is stopping.
        """
        self._session, self._welcome = await meet(self._flower_node, self._post, self._counter)
        try:
            end = await self._work()
            await self._end(end)
        except (NoAnswer, TakesNoPart) as error:
            await self._counter.leave(self._session, str(error))
            raise
        finally:
            if self._turn is not None:
                self._turn.cancel()

    # --------------------------------------------------------------------------------- working

    async def _work(self) -> msg.Order:
        """The conversation; returns the order that ends it."""
        while True:
            if self._turn is not None and (self._turn.done() or self._session.unit is None):
                # One that is not wanted any more can't be called back: it is waited for.
                await self._take(self._turn)
                continue
            now = self._counter.now()
            todo = self._session.tick(now)
            if todo.say is None:
                due = self._session.deadline()
                wait_s = max(0.0, due - now) if due is not None else 1.0
                await self._pause(wait_s)
                continue
            todo, order = await self._ask(todo.say)
            if todo.start is not None:
                self._fraction, self._crashes, self._limit_s = -1.0, 0, self._turn_s
                self._begin(todo.start)
            if todo.end and order is not None:
                await self._last_turn()
                return order

    async def _last_turn(self) -> None:
        """A turn that is out when the run is over is waited for; nothing of it counts any more."""
        unit, turn = self._unit, self._turn
        if unit is None or turn is None:
            return
        log.info("the run is over; a turn of %s that is still out is waited for", unit.unit_id)
        await asyncio.wait({turn}, timeout=END_WAIT_S)
        if turn.done() and (error := turn.exception()) is not None:
            log.warning("the last turn of %s came to nothing: %s", unit.unit_id, error)

    async def _pause(self, wait_s: float) -> None:
        if self._turn is None:
            await asyncio.sleep(wait_s)
        else:
            await asyncio.wait({self._turn}, timeout=wait_s)

    async def _ask(self, question: msg.Exchange) -> tuple[Todo, msg.Order | None]:
        """One question to the host, and what its answer means."""
        try:
            order = await self._counter.exchange(question)
        except PeerError as error:
            if not (question.working or question.finished or question.failed):
                raise  # a plain question for work: saying it again would not help
            log.warning("refused: %s", error)
            return self._session.refused(str(error), self._counter.now()), None
        except WorldError as error:
            if self._counter.stopping:
                raise
            log.warning("%s", error)
            self._session.lost(self._counter.now(), random.random())
            return Todo(), None
        return self._session.handle(order, self._counter.now()), order

    def _begin(self, unit: Unit) -> None:
        self._unit = unit
        self._turn = asyncio.create_task(self._send(unit))

    async def _send(self, unit: Unit) -> Report:
        """One turn of `unit`, there and back."""
        here = [ref for ref in unit.inputs if ref.digest not in self._at_node]
        blobs = {ref.digest: await self._counter.blob(ref) for ref in here}
        exchange = self._counter.signed(self._session, unit)
        order = Order(self._welcome, exchange, self._session.incarnation, self._limit_s, blobs)
        kind = EVALUATE if unit.key.kind in EVALUATIONS else TRAIN
        self._count("exchange", "down", len(order.exchange) + len(order.welcome))
        for ref in here:
            self._count(ref.name, "down", ref.size)
            self._at_node.add(ref.digest)
        group = str(self._counter.round)
        records = await self._post.ask(
            self._flower_node, kind, order.to_records(), group, due_s=self._limit_s
        )
        return Report.from_records(records)

    async def _take(self, turn: asyncio.Task[Report]) -> None:
        """What came of a turn, told to the session; or the next turn of the same unit."""
        unit, self._turn = self._unit, None
        assert unit is not None
        try:
            report = await turn
            if report.refused:
                raise TakesNoPart(shown(report.refused, 500))
            exchange = self._read(report.exchange)
            await self._keep_blobs(unit, exchange, report)
        except NoAnswer as error:
            if error.gone:
                raise
            self._crashed(unit, str(error))
            return
        except (NoLink, TakesNoPart):
            raise
        except SmalltalkError as error:  # what it sent can't be used, or an input is gone
            self._session.fail(unit.unit_id, str(error), self._counter.now())
            return
        if self._session.unit is None:
            return  # somebody else was faster
        if report.missing:
            self._crashed(unit, f"{self._session.node_id} lacks inputs of {unit.unit_id}")
            return
        self._crashes = 0
        self._pass_on(unit, exchange)

    def _pass_on(self, unit: Unit, said: msg.Exchange) -> None:
        now = self._counter.now()
        if said.finished is not None:
            self._session.finish(said.finished, now)
        elif said.failed is not None:
            self._session.fail(unit.unit_id, said.failed.reason, now)
        elif said.working is not None and said.working.unit_id == unit.unit_id:
            if said.working.fraction <= self._fraction:
                self._limit_s *= 2
            self._fraction = said.working.fraction
            self._session.progress(self._fraction, said.working.figures)
            if said.collected is not None:
                self._session.collect(said.collected, now)
            self._begin(unit)
        else:
            self._session.fail(unit.unit_id, "its node says nothing of it", now)

    def _crashed(self, unit: Unit, why: str) -> None:
        """A turn came to nothing: the same again, with all inputs."""
        self._crashes += 1
        log.warning("%s (%d in a row)", why, self._crashes)
        self._at_node.clear()
        if self._crashes < CRASHES_MAX and self._session.unit is not None:
            self._begin(unit)
        else:
            self._session.fail(unit.unit_id, why, self._counter.now())

    def _read(self, data: bytes) -> msg.Exchange:
        self._count("exchange", "up", len(data))
        try:
            request = pb.ExchangeRequest.FromString(data)
        except DecodeError as error:
            raise Malformed(f"a node's report can't be read ({error})") from None
        exchange = convert.exchange_from_proto(self._session.node_id, request)
        if exchange.incarnation != self._session.incarnation:
            raise Refused("a report of another process of this node")
        return exchange

    async def _keep_blobs(self, unit: Unit, said: msg.Exchange, report: Report) -> None:
        for result in (said.finished, said.collected):
            if result is not None:
                await self._keep(unit, result, report)

    async def _keep(self, unit: Unit, result: Result, report: Report) -> None:
        """Store the outputs of a result; what it names must have come with it, or be here."""
        if result.unit_id != unit.unit_id:
            raise Malformed(f"a result of {result.unit_id} came for {unit.unit_id}")
        for ref in result.outputs:
            data = report.blobs.get(ref.digest)
            if data is not None:
                self._count(ref.name, "up", len(data))
                await self._counter.keep(self._session.node_id, unit.unit_id, ref, data)
            elif not self._counter.has(ref):
                raise Malformed(f"the output '{ref.name}' of {unit.unit_id} did not come with it")
            self._at_node.add(ref.digest)

    # ---------------------------------------------------------------------------------- ending

    async def _end(self, order: msg.Order) -> None:
        """Tell the node that the run is over; one that does not answer loses nothing."""
        exchange = convert.order_to_proto(order).SerializeToString()
        farewell = Order(self._welcome, exchange, self._session.incarnation, self._turn_s)
        self._count("exchange", "down", len(exchange) + len(self._welcome))
        try:
            ask = self._post.ask(self._flower_node, END, farewell.to_records())
            await asyncio.wait_for(ask, END_WAIT_S)
        except (NoAnswer, TimeoutError):
            log.info("node %s did not hear that the run is over", self._session.node_id)

    def _count(self, name: str, direction: str, size: int) -> None:
        self._counter.count(self._session.node_id, name, direction, size)
