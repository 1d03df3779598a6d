"""Small runs for the core's tests: no text, no models, only digests."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import outputs_of
from smalltalk_fed.core.coordinator import Coordinator, Ready
from smalltalk_fed.core.events import Event
from smalltalk_fed.core.seats import stays
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKey, UnitKind

CORPUS = "c" * 64


def make_manifest(**run: Any) -> RunManifest:
    """E = 2, two rounds, two shards, unless told otherwise."""
    experts = run.pop("experts", 2)
    rounds = run.pop("rounds", 2)
    expert = run.pop("expert", {})
    assignment = run.pop("assignment", {})
    heldout = run.pop("heldout_sequences", 6)
    audit = run.pop("audit", {"rate": 0})  # a test that is about audits switches them on
    config = parse_config(
        {
            "run": {"experts": experts, "lease_s": 20.0, "poll_s": 10.0, **run},
            "sequence": {"length": 16, "prefix": 8},
            "router": {"rounds": rounds, "chunk_sequences": 10, "model": "router-mini"},
            "expert": {"model": "mini", "steps": 2, "batch_sequences": 2, **expert},
            "assignment": assignment,
            "audit": audit,
        },
        "test",
    )
    return RunManifest(
        run_id="test-run",
        created_unix_s=0,
        config=config,
        corpus_digest=CORPUS,
        tokenizer_sha256="d" * 64,
        vocabulary=300,
        train_sequences=20,
        heldout_sequences=heldout,
    )


def blob(name: str, content: str) -> BlobRef:
    """A reference to bytes that nobody needs."""
    return BlobRef(name, hashlib.sha256(content.encode()).hexdigest(), len(content))


def honest(manifest: RunManifest, unit_id: str) -> tuple[BlobRef, ...]:
    """What a unit must bring."""
    names = outputs_of(manifest, UnitKey.parse(unit_id))
    return tuple(blob(name, f"{unit_id}/{name}") for name in names)


def judge(manifest: RunManifest, job: jmsg.JudgeJob) -> jmsg.Judged:
    """As the real one: one opinion may find a result good, two that agree decide."""
    target = job.target.unit_id
    by_content: dict[str, list[str]] = {}
    for unit_id, ref in job.opinions:
        by_content.setdefault(ref.digest, []).append(unit_id)
    largest = max(by_content.values(), key=len)
    agreed = len(largest) > 1
    if not agreed and len(job.opinions) > 1:
        return jmsg.Judged(job.job_id, "open", "no two opinions agree")
    said = next(d for d, unit_ids in by_content.items() if unit_ids is largest)
    good = {
        blob("audit", f"{target}: what is true").digest: job.outputs == honest(manifest, target),
        blob("audit", f"{target}: it is fine").digest: True,
    }.get(said, False)
    wrong = tuple(u for u, _ in job.opinions if u not in largest) if agreed else ()
    verdict = "good" if good else "bad" if agreed else "open"
    return jmsg.Judged(job.job_id, verdict, "seen" if good else "it is not so", {"x": 1.0}, wrong)


@dataclass
class World:
    """A coordinator and its host's duties, by hand: commits to a list, does jobs at once."""

    manifest: RunManifest
    now: float = 1000.0
    journal: list[Event] = field(default_factory=list)
    answers: dict[int, msg.Answer] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    do_jobs: bool = True
    loads: tuple[float, ...] = ()  # of experts, as jobs report them; 5 each
    secret: bytes = b"drawn with this"
    odd: dict[str, str] = field(default_factory=dict)  # units that the next division suspects
    jobs: list[jmsg.Job] = field(default_factory=list)
    asked_for: list[jmsg.Job] = field(default_factory=list)  # all jobs ever
    _conversations: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.manifest, self.now, secret=self.secret)
        self._settle(self.coordinator.start(self.now))

    def restart(self) -> None:
        """A new process with the same journal."""
        self.answers.clear()
        self.coordinator = Coordinator.replay(
            self.manifest, self.journal, self.now, secret=self.secret
        )
        self._settle(self.coordinator.start(self.now))

    def ask(self, message: msg.Request) -> int:
        """Hand a message in; the answer, if there is one yet, is in `answers`."""
        conversation = next(self._conversations)
        self._settle(self.coordinator.handle(message, conversation, self.now))
        return conversation

    def answer(self, message: msg.Request) -> Any:
        """Hand a message in that is answered at once."""
        return self.answers[self.ask(message)]

    def advance(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        end = self.now + seconds
        while (due := self.coordinator.deadline()) is not None and due <= end:
            assert due > self.now - 1e-9, "a deadline must not lie in the past for ever"
            self.now = max(self.now, due)
            self._settle(self.coordinator.tick(self.now))
            if self.coordinator.deadline() == due:
                raise AssertionError(f"tick did not move the deadline {due}")
        self.now = end
        self._settle(self.coordinator.tick(self.now))

    def finish_job(self) -> None:
        """Do the oldest job that is waiting."""
        job = self.jobs.pop(0)
        self._settle(self.coordinator.job_done(self._outcome(job), self.now))

    def _outcome(self, job: jmsg.Job) -> jmsg.Outcome:
        if isinstance(job, jmsg.JudgeJob):
            return judge(self.manifest, job)
        if isinstance(job, jmsg.PricesJob):
            there = set().union(*job.experts)
            moved = {
                f"price_{e}": price + e + 1 if e in there else price
                for e, price in enumerate(job.prices)
            }
            return jmsg.JobFinished(job.job_id, (), moved | {"off_diagonal": 0.25})
        if isinstance(job, jmsg.AssignJob):
            blocks = {e: f"router_round/{e}/{job.round - 1}" for e in range(self.manifest.experts)}
            unseen = [unit_id for e, unit_id in blocks.items() if e not in job.checked]
            odd = {unit_id: self.odd[unit_id] for unit_id in unseen if unit_id in self.odd}
            if odd:
                return jmsg.Suspects(job.job_id, odd)
        experts = self.manifest.experts
        outputs = tuple(blob("ids", f"{job.job_id}/{e}") for e in range(experts))
        loads = self.loads or (5.0,) * experts
        figures = {f"load_{e}": loads[e] for e in range(experts)}
        figures |= {"displaced_fraction": 0.0, "excess_nats": 0.0}
        return jmsg.JobFinished(job.job_id, outputs, figures)

    def fail_job(self, reason: str, culprit: str) -> None:
        """Let the oldest job fail."""
        job = self.jobs.pop(0)
        self._settle(
            self.coordinator.job_done(jmsg.JobFailed(job.job_id, reason, culprit), self.now)
        )

    def _settle(self, ready: Ready) -> None:
        self.journal += ready.events
        for reply in ready.replies:
            assert reply.conversation not in self.answers
            self.answers[reply.conversation] = reply.answer
        self.decisions += [f"{d.what}: {d.reason}" for d in ready.decisions]
        self.released += ready.released
        self.jobs += ready.jobs
        self.asked_for += ready.jobs
        while self.do_jobs and self.jobs:
            self.finish_job()


@dataclass
class FakeNode:
    """A node as the coordinator sees it: says things, never computes."""

    world: World
    name: str
    incarnation: int = 1
    node_id: str = ""
    unit: Unit | None = None
    question: int = 0
    stopped: str = ""
    tokens_per_s: float = 0.0
    order: msg.Order | None = None  # the latest
    lies: bool = False  # in its results
    says: str = "what is true"  # in its opinions
    text: tuple[int, int, str] = (0, 0, "")  # of a silo: sequences of both splits, and its digest
    seat: int = -1
    share: str = "never"

    def enrol(self) -> FakeNode:
        secret = hashlib.sha256(f"secret of {self.name}".encode()).hexdigest()
        self.world.ask(msg.MakeInvite(secret, self.world.now + 3600))
        key = hashlib.sha256(f"key of {self.name}".encode()).hexdigest()
        self.node_id = self.world.answer(msg.Enrol(secret, key, self.name)).node_id
        return self

    def join(self) -> FakeNode:
        train, heldout, digest = self.text
        private = self.world.manifest.config.run.regime == "private"
        capabilities = msg.Capabilities(
            corpus_digest=digest if private else self.world.manifest.corpus_digest,
            tokens_per_s=self.tokens_per_s,
            train_sequences=train,
            heldout_sequences=heldout,
        )
        key, place = hashlib.sha256(self.name.encode()).digest(), (self.seat, self.share)
        self.world.ask(msg.Join(self.node_id, self.incarnation, 1, key, capabilities, *place))
        return self

    def poll(self, **said: Any) -> msg.Order | None:
        """Ask for work; None if the question is held."""
        exchange = msg.Exchange(self.node_id, self.incarnation, **said)
        self.question = self.world.ask(exchange)
        return self.look()

    def look(self) -> msg.Order | None:
        """The answer to the last question, if it came."""
        order = self.world.answers.get(self.question)
        if order is None:
            return None
        assert isinstance(order, msg.Order)
        self.order = order
        if order.stop:
            self.stopped = order.reason
        if order.unit is not None:
            self.unit = order.unit
        return order

    def beat(self, fraction: float = 0.5, **said: Any) -> msg.Order | None:
        """Say that the unit is in work."""
        assert self.unit
        working = msg.Working(self.unit.unit_id, fraction)
        return self.poll(working=working, wants_work=False, **said)

    def work(self, seconds: float, rate: float = 0.0) -> None:
        """Let time pass, saying every heartbeat that the unit is in work."""
        end, began = self.world.now + seconds, self.world.now
        while self.world.now < end:
            self.world.advance(min(5.0, end - self.world.now))
            self.beat(min(0.99, 0.01 + rate * (self.world.now - began)))

    def state_at(self, step: int, from_step: int | None = None) -> Result:
        """The weights of the expert in work at `step`."""
        assert self.unit
        begun = self.unit.start_step if from_step is None else from_step
        figures = {"step": float(step), "from_step": float(begun)}
        weights = blob("weights", f"{self.unit.unit_id} at {step} of {self.name}")
        return Result(self.unit.unit_id, (weights,), figures)

    def vanish(self) -> None:
        """Be gone without a word: its open question goes unanswered."""
        self.world.coordinator.forget(self.question)

    def result(self) -> Result:
        """What a good result of the unit at hand looks like."""
        assert self.unit
        gone = {f"router-{expert}" for expert in self.unit.withdrawn}
        every = honest(self.world.manifest, self.unit.unit_id)
        outputs = tuple(ref for ref in every if ref.name not in gone)
        if stays(self.world.coordinator.state, self.unit.key):
            outputs = ()
        if self.unit.key.kind is UnitKind.AUDIT:
            outputs = (blob("audit", f"{self.unit.key.target}: {self.says}"),)
        elif self.lies:
            outputs = tuple(
                blob(ref.name, f"{self.unit.unit_id}/{ref.name} of {self.name}") for ref in outputs
            )
        figures = {}
        if self.unit.key.kind is UnitKind.TRAIN_EXPERT:
            figures = {"from_step": float(self.unit.start_step)}
        if self.unit.key.kind is UnitKind.ROUTER_ROUND and self.tokens_per_s:
            figures = {"tokens_per_s": self.tokens_per_s}
        if self.unit.key.kind in (UnitKind.EVALUATE, UnitKind.EVALUATE_SILO):
            figures = {
                "suffix_nll": 1.0,
                "suffix_tokens": 1.0,
                "prefix_nll": 1.0,
                "prefix_tokens": 1.0,
            }
        return Result(self.unit.unit_id, outputs, figures)

    def done(self) -> msg.Order | None:
        """Hand the unit in and ask for the next."""
        result = self.result()
        self.unit = None
        return self.poll(finished=result)
