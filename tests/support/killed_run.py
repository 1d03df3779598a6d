"""A run whose nodes live here and whose coordinator is killed: real sessions, real results.

Each node is `core.Session` driven as the node's program drives it: join, ask, fetch, compute,
upload in parts, sign, hand in; after a death everything that was not answered is said again.
Units are computed by what nodes compute them with (`tiny_units`), so a run that hands out
other inputs computes other things. One message at a time, so that points come in one order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from support.killable_coordinator import Coordinator, Died, Zygote
from support.tiny_units import UnitDoer, signed_result

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import RoundAssigned, SegmentsMade, UnitAccepted, WeightsCollected
from smalltalk_fed.core.session import Session
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKind
from smalltalk_fed.errors import Refused
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.wire.signing import SigningKey

START_S = 1_000_000.0
PARTS = 2  # of every upload
STEPS_MAX = 20_000
HEARTBEATS = 1.5  # that an expert takes


@dataclass
class Work:
    """A unit in work; every step can be done again."""

    unit: Unit
    ready_at: float
    inputs: dict[str, bytes] = field(default_factory=dict)
    begun: bool = False  # computed, and what is collected on the way is uploaded


@dataclass
class Node:
    """One node's process, which nothing happens to."""

    run: KilledRun
    name: str
    key: SigningKey
    session: Session | None = None
    work: Work | None = None
    joined: bool = False
    question: int = 0
    refused: bool = False

    def step(self) -> bool:
        """Do the next thing, if there is one now; raises Died."""
        if self.session is None:
            self.session = Session(self._enrol(), 1)
        elif not self.joined:
            self._join(self.session)
        elif self.question in self.run.coordinator.answers:
            self._hear(self.session, self.run.coordinator.answers.pop(self.question))
        elif self.work is not None and not self.work.begun:
            self._begin(self.session, self.work)
        elif self.work is not None and self.run.now >= self.work.ready_at:
            self._end(self.session, self.work)
        else:
            say = self.session.tick(self.run.now).say
            if say is None:
                return False
            self.question = self.run.coordinator.post("ask", say)
        return True

    def lost(self) -> None:
        """The coordinator died: what was asked gets no answer."""
        if self.session is not None and self.question:
            self.session.lost(self.run.now, 0.0)
        self.question, self.refused = 0, False

    def times(self) -> list[float]:
        """When it will have something to do."""
        due = self.session.deadline() if self.session else None
        times = [due] if due is not None else []
        return [*times, self.work.ready_at] if self.work else times

    # ----------------------------------------------------------------------------- its parts

    def _enrol(self) -> str:
        secret = hashlib.sha256(f"secret {self.name}".encode()).hexdigest()
        key_sha256 = hashlib.sha256(self.name.encode()).hexdigest()
        call = self.run.coordinator.call
        call("ask", msg.MakeInvite(secret, START_S + 1e6))
        node_id: str = call("ask", msg.Enrol(secret, key_sha256, self.name)).node_id
        return node_id

    def _join(self, session: Session) -> None:
        capabilities = msg.Capabilities(corpus_digest=self.run.doer.manifest.corpus_digest)
        join = msg.Join(session.node_id, 1, 1, self.key.public_bytes, capabilities)
        self.run.coordinator.call("ask", join)
        self.joined = True

    def _hear(self, session: Session, answer: Any) -> None:
        self.question = 0
        if isinstance(answer, Refused) and not self.refused:  # a new coordinator knows nobody
            self.refused, self.joined = True, False
            session.lost(self.run.now, 0.0)
            return
        assert isinstance(answer, msg.Order), f"{self.name} was answered {answer!r}"
        self.refused = False
        todo = session.handle(answer, self.run.now)
        assert not todo.failed, todo.end
        if todo.drop:
            self.work = None
        if todo.start is not None:
            long = todo.start.key.kind is UnitKind.TRAIN_EXPERT
            took_s = HEARTBEATS * answer.heartbeat_s if long else 0.0
            self.work = Work(todo.start, self.run.now + took_s)

    def _begin(self, session: Session, work: Work) -> None:
        for ref in work.unit.inputs:
            if ref.name not in work.inputs:
                work.inputs[ref.name] = self.run.coordinator.call("get", ref.digest)
        for step, data in self.run.doer.do(work.unit, work.inputs).states.items():
            self._upload("weights", data)
            figures = {"step": float(step), "from_step": float(work.unit.start_step)}
            session.collect(self._signed(session, work, {"weights": data}, figures), self.run.now)
        work.begun = True

    def _end(self, session: Session, work: Work) -> None:
        done = self.run.doer.do(work.unit, work.inputs)
        for name, data in done.outputs.items():
            self._upload(name, data)
        session.finish(self._signed(session, work, done.outputs, done.figures), self.run.now)
        self.work = None

    def _upload(self, name: str, data: bytes) -> None:
        """In parts, from where an upload before broke off."""
        call, ref = self.run.coordinator.call, _ref(name, data)
        while not (state := call("blob_state", ref.digest))[1]:
            here, part_bytes = state[0], -(-ref.size // PARTS)
            call("put", name, ref.digest, ref.size, here, data[here : here + part_bytes])

    def _signed(
        self, session: Session, work: Work, outputs: dict[str, bytes], figures: dict[str, float]
    ) -> Result:
        refs = tuple(_ref(name, data) for name, data in outputs.items())
        run_id = self.run.doer.manifest.run_id
        return signed_result(self.key, run_id, session.node_id, work.unit, refs, figures)


@dataclass
class KilledRun:
    """Takes a run to its end, whatever its coordinator does; starts a new one when it dies.

    It is killed at its `kill_at`th point; `again`: and so is the new one, at its first.
    Of the points only those count that have `only` in their labels.
    """

    zygote: Zygote
    folder: RunFolder
    doer: UnitDoer
    keys: dict[str, SigningKey]
    kill_at: int = 0
    only: str = ""
    again: bool = False
    now: float = START_S
    deaths: int = 0
    due: float | None = None  # when time alone changes something in the coordinator
    coordinator: Coordinator = field(init=False)

    def finish(self) -> None:
        """Until every node was told that the run is over."""
        self.nodes = [Node(self, name, key) for name, key in self.keys.items()]
        self._start(self.kill_at)
        for _ in range(STEPS_MAX):
            try:
                if all(node.session and node.session.ended for node in self.nodes):
                    self.coordinator.call("quiet")
                    self.coordinator.close()
                    return
                self._turn()
            except Died:
                self._died()
        raise AssertionError("the run does not end")

    def points(self) -> list[str]:
        """The labels of the points that were reached."""
        return self.folder.path.with_name("points").read_text().splitlines()

    def _turn(self) -> None:
        moved = False
        for node in self.nodes:
            if node.step():
                self.due, moved = self.coordinator.call("quiet"), True
        if moved:
            return
        times = [time for node in self.nodes for time in node.times()]
        later = [time for time in (*times, self.due) if time is not None and time > self.now]
        assert later, "nobody has anything to do any more"
        self.coordinator.call("advance", min(later) - self.now)
        self.now = min(later)
        self.due = self.coordinator.call("quiet")

    def _died(self) -> None:
        self.deaths += 1
        for node in self.nodes:
            node.lost()
        self._start(len(self.points()) + 1 if self.again else 0)
        self.due = None

    def _start(self, kill_at: int) -> None:
        self.coordinator = self.zygote.coordinator(self.folder.path, self.now, kill_at, self.only)


def outcome(folder: RunFolder) -> dict[str, object]:
    """All that a finished run has decided and made: lists, routers, experts, losses.

    But for opinions: which sample they are on follows from who did the work, which a death
    may change.
    """
    made: dict[str, object] = {}
    journal = Journal(folder.journal)
    for event in journal.events():
        match event:
            case RoundAssigned():
                made[f"round {event.round}"] = event.shares
            case SegmentsMade():
                made["segments"] = event.segments
            case WeightsCollected():
                made[f"{event.unit_id} at {event.step}"] = event.outputs
            case UnitAccepted() if not event.unit_id.startswith(UnitKind.AUDIT):
                losses = {k: v for k, v in event.figures.items() if k.endswith(("nll", "loss"))}
                made[event.unit_id] = (event.outputs, losses)
    journal.close()
    for path in sorted(folder.mixture.rglob("*")):
        if path.is_file() and path.name != "mixture.json":  # which has times in it
            made[str(path.relative_to(folder.mixture))] = path.read_bytes()
    return made


def _ref(name: str, data: bytes) -> BlobRef:
    return BlobRef(name, hashlib.sha256(data).hexdigest(), len(data))
