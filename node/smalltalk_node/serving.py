"""`smalltalk-node serve-experts`: this node's experts answer prompts over its own connection.

Rules: nothing is listened to: the node dials as always, offers the experts that it has, and
answers what comes down that line. It goes on until Ctrl-C, so many answers, or the end of its
hours; a line that broke is dialled again, with growing pauses. Prompts are neither kept nor
logged. The owner bounds how long an answer gets and how many are computed at a time. A prompt
that can't be answered is told so; the next one is.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.errors import SlowDown, SmalltalkError, UserError, WorldError
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert_serving
from smalltalk_fed.wire.convert_measuring import Losses, Text
from smalltalk_fed.wire.convert_serving import Answer, Asked, Completion, Offer
from smalltalk_fed.worksite.folders import WEIGHTS_FILE
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.signals import stop_on_signals
from smalltalk_node.answering import Answering
from smalltalk_node.arrival import MANIFEST_FILE
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import NoAnswer
from smalltalk_node.joining import Renewal
from smalltalk_node.options import Options
from smalltalk_node.program import STOPPED

log = logging.getLogger("smalltalk.node")

KIND = "serve"
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 60.0

Outgoing = queue.SimpleQueue[pb.ServeUp | None]  # None: nothing more follows


@dataclass(frozen=True)
class Bounds:
    """What the owner allows: answers at a time, tokens of one, answers in all (0: no end)."""

    at_once: int = 1
    tokens_max: int = convert_serving.MAX_ANSWER_TOKENS
    answers: int = 0


def experts_here(folder: NodeFolder, wanted: tuple[int, ...] = ()) -> tuple[RunManifest, list[int]]:
    """The run's manifest, and the experts of it that this node has; only those `wanted`, if any.

    Raises:
        UserError: the node has taken part in no run, or does not have them.
    """
    stored = folder.path / MANIFEST_FILE
    if not stored.exists():
        raise UserError(f"{folder.path} has taken part in no run yet; `smalltalk-node run` first.")
    manifest = RunManifest.from_bytes(stored.read_bytes())
    place = folder.place("experts") / manifest.run_id
    found = [e for e in range(manifest.experts) if (place / str(e) / WEIGHTS_FILE).is_file()]
    lacking = sorted(set(wanted) - set(found))
    if lacking or not found:
        what = f"expert {lacking[0]}" if lacking else "finished expert"
        has = f"it has {', '.join(map(str, found))}" if found else "`smalltalk-node run` trains one"
        raise UserError(f"{place} has no {what} of this run; {has}.")
    return manifest, sorted(wanted) or found


class Serving:
    """One start of it. `run` once; the folder must be locked."""

    def __init__(
        self,
        folder: NodeFolder,
        options: Options,
        bounds: Bounds = Bounds(),
        experts: tuple[int, ...] = (),
    ) -> None:
        self._manifest, self._experts = experts_here(folder, experts)
        place: Path = folder.place("experts") / self._manifest.run_id
        self._answering = Answering(self._manifest, place, options.compute_device)
        self._bounds = bounds
        self.ledger = Ledger()
        self._connection = Connection(folder, folder.identity(), self.ledger, options.outgoing())
        self._renewal, self._clock = Renewal(folder, self._connection), SystemClock()
        self._stopping = threading.Event()
        self._call: grpc.Call | None = None
        self._resting = ""
        self._taken = False  # by the coordinator, on this line
        self._lock = threading.Lock()
        self.answered = 0

    # ------------------------------------------------------------------------------ the end

    def stop(self) -> None:
        """End: `run` raises KeyboardInterrupt. For any thread or signal handler."""
        self._resting = ""
        self._end_soon()

    def rest(self, reason: str) -> None:
        """As `stop`, but for now only."""
        self._resting = reason
        self._end_soon()

    @property
    def stopped_by_hours(self) -> bool:
        """Whether it was told to `rest`, and not to `stop`."""
        return bool(self._resting)

    def _end_soon(self) -> None:
        self._stopping.set()
        call = self._call
        if call is not None:
            call.cancel()

    # ---------------------------------------------------------------------------- the lines

    def run(self) -> str:
        """Serve; returns why it ended by itself: so many answers were given.

        Raises:
            KeyboardInterrupt: stopped by a signal.
            PeerError: the coordinator does not let these experts be served, and why.
        """
        longest_s = RETRY_FIRST_S
        with stop_on_signals(self.stop):
            try:
                while not self._stopping.is_set():
                    self._taken = False
                    try:
                        self._renewal.when_due(self._clock.now())
                        self._one_line()
                        return f"{self.answered} prompts were answered"
                    except (WorldError, SlowDown) as error:
                        longest_s = RETRY_FIRST_S if self._taken else longest_s
                        self._wait(error, longest_s)
                        longest_s = min(2 * longest_s, RETRY_LAST_S)
                raise KeyboardInterrupt(self._resting or STOPPED)
            finally:
                self._connection.close()

    def _one_line(self) -> None:
        """One connection, until all answers are given that were to be.

        Raises:
            SmalltalkError: why it ended before.
        """
        outgoing: Outgoing = queue.SimpleQueue()
        outgoing.put(convert_serving.offer_to_proto(self._offer()))
        stub, line = self._connection.stub, self._connection.line
        call = self._call = stub.Serve(self._messages(outgoing))
        over = threading.Event()
        workers = ThreadPoolExecutor(self._bounds.at_once, "answer")
        try:
            for message in call:
                if (asked := self._read(message)) is not None:
                    workers.submit(self._answer, asked, outgoing, over)
        except grpc.RpcError as error:
            if not self._done():
                raise self._connection.explained(error, line) from None
        finally:
            over.set()  # whoever asked is gone
            outgoing.put(None)
            call.cancel()
            workers.shutdown(cancel_futures=True)
        if not self._done():
            raise NoAnswer("the coordinator ended the line.")

    def _offer(self) -> Offer:
        return Offer(tuple(self._experts), self._bounds.at_once)

    def _read(self, message: pb.ServeDown) -> Asked | None:
        self.ledger.message(self._connection.node_id, KIND, "down", message.ByteSize())
        said = convert_serving.serve_down_from_proto(message)
        if not isinstance(said, str):
            return said
        self._taken = True
        log.info("experts %s answer now: %s", ", ".join(map(str, self._experts)), said)
        return None

    def _answer(self, asked: Asked, outgoing: Outgoing, over: threading.Event) -> None:
        try:
            answer = self._computed(asked, over)
        except SmalltalkError as error:
            log.warning("a prompt could not be answered: %s", error)
            answer = Completion(asked.number, problem=str(error))
        except Exception:  # whoever asked must not wait for it
            log.exception("a prompt could not be answered")
            answer = Completion(asked.number, problem="its program has a bug, see its log")
        if over.is_set():
            return
        outgoing.put(convert_serving.answer_up(answer))
        with self._lock:
            self.answered += 1
        if self._done():
            outgoing.put(None)

    def _computed(self, asked: Asked, over: threading.Event) -> Answer:
        if asked.expert not in self._experts:
            raise UserError(f"expert {asked.expert} was not offered")
        if isinstance(asked, Text):
            return Losses(asked.number, *self._answering.losses(asked, over.is_set))
        most = min(asked.tokens_max, self._bounds.tokens_max)
        return Completion(asked.number, self._answering.tokens(asked, most, over.is_set))

    def _done(self) -> bool:
        return bool(self._bounds.answers) and self.answered >= self._bounds.answers

    def _messages(self, outgoing: Outgoing) -> Iterator[pb.ServeUp]:
        """What goes up, in order; gRPC asks for the next when one has left."""
        while (message := outgoing.get()) is not None:
            self.ledger.message(self._connection.node_id, KIND, "up", message.ByteSize())
            yield message

    def _wait(self, error: SmalltalkError, longest_s: float) -> None:
        if self._stopping.is_set():
            return
        asked_s = error.wait_s if isinstance(error, SlowDown) else 0.0
        wait_s = asked_s + longest_s * (0.5 + 0.5 * random.random())
        log.warning("%s Trying again in %.1f s.", error, wait_s)
        self._stopping.wait(wait_s)
