"""Simulated nodes, some of them liars, around the real core, checks and judge, in virtual time.

What nodes hand in is modelled (`attacks_model.py`); who gets what, form checks, dividing,
suspecting and judging are the real ones. A node's time follows from the work of its unit in
forward passes, its own speed and the costs of the demo's shapes. A node that is refused at
hand-in leaves. Liars lie from their first unit on (`eager`), or are honest for as long as all
newcomers are looked at (`patient`): these only chance finds.
"""

from __future__ import annotations

import hashlib
import heapq
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from attacks_lies import Blobs, Liar
from attacks_model import Model

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import job_messages as jmsg
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator, Ready
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.redos import SCORED
from smalltalk_fed.core.units import Result, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import PeerError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.checks import check_result
from smalltalk_fed.host.jobs import run_job

NODES, EXPERTS, ROUNDS, CHUNK = 20, 8, 12, 1024
TRAIN, HELDOUT_SEQUENCES, VOCABULARY = 5 * CHUNK, 512, 512
TIMED_CHUNK = 2560  # sequences that a chunk counts as in a node's time: the demo's
TOKENS_PER_S = 200_000.0  # forward, of a router
EXPERT_SIZE = 4.0  # times the router's
EXPERT_STEPS, EXPERT_BATCH = 600, 16
# What the manifest says, so that training a round again is the same part of all work in the
# core's account (3.6 % for all rounds) as in these nodes' times, though its chunks are smaller.
PLANNED_STEPS = 390
END_S = 30 * 86400.0


def counts_manifest(seed: int, rate: float | None = None) -> RunManifest:
    """The run that all counts are of; `rate` of audits, the default one unless given."""
    tiny = {"hidden": 8, "layers": 1, "heads": 1, "feed_forward": 8}
    larger = {"hidden": 24, "layers": 1, "heads": 1, "feed_forward": 50}  # EXPERT_SIZE times
    table = {
        "run": {"experts": EXPERTS, "nodes_to_start": NODES, "seed": seed, "lease_s": 86400.0,
                "poll_s": 600.0, "spare_copies": 0},
        "sequence": {"length": 256, "prefix": 64},
        "router": {"model": tiny, "rounds": ROUNDS, "chunk_sequences": CHUNK},
        "expert": {"model": larger, "steps": PLANNED_STEPS, "batch_sequences": EXPERT_BATCH},
        "audit": {} if rate is None else {"rate": rate},
        "compute": {"train_dtype": "float32"},
    }  # fmt: skip
    return RunManifest(
        run_id="attacks",
        created_unix_s=0,
        config=parse_config(table, "attacks"),
        corpus_digest="c" * 64,
        tokenizer_sha256="d" * 64,
        vocabulary=VOCABULARY,
        train_sequences=TRAIN,
        heldout_sequences=HELDOUT_SEQUENCES,
    )


def work_s(manifest: RunManifest, unit: Unit) -> float:
    """Seconds of a unit on a node of the usual speed: forward passes, three for a training."""
    config, key = manifest.config, unit.key
    prefix, length = config.sequence.prefix, config.sequence.length
    chunk, sample, experts = TIMED_CHUNK, config.audit.sample_sequences, manifest.experts
    kind = UnitKey.parse(key.target).kind if key.kind is UnitKind.AUDIT else key.kind
    audit = key.kind is UnitKind.AUDIT
    match kind:
        case UnitKind.ROUTER_ROUND:
            training, scored = 3 * chunk / experts, 7 * sample if audit else chunk
            if unit.redo:
                scored = SCORED * sample
            trains = unit.redo or not audit
            tokens = (scored + training * trains) * prefix
        case UnitKind.SHARD:
            tokens = (sample if audit else chunk) * experts * prefix
        case UnitKind.TRAIN_EXPERT if audit:
            tokens = 2 * sample * prefix + EXPERT_SIZE * sample * 3 * length
        case UnitKind.TRAIN_EXPERT:
            tokens = EXPERT_SIZE * 3 * EXPERT_STEPS * EXPERT_BATCH * length
        case _:
            tokens = EXPERT_SIZE * HELDOUT_SEQUENCES / experts * length
    return tokens / TOKENS_PER_S


@dataclass
class Node:
    """One simulated node."""

    name: str
    speed: float
    outputs: Callable[[Unit, Blobs], Blobs]
    liar: Liar | None = None
    node_id: str = ""
    unit: Unit | None = None
    began: float = 0.0
    end: str = ""  # why it stopped
    quarantined: bool = False
    caught_units: int | None = None  # lies handed in when it was caught
    caught_s: float | None = None  # since its first lie
    first_lie: float | None = None
    question: int = 0


@dataclass(frozen=True)
class Counts:
    """What came of one run."""

    finished: bool
    liars: int  # that lied at all
    caught: int
    lies_until_caught: list[int]
    hours_until_caught: list[float]
    honest_quarantined: int
    audit_share: float  # of all nodes' seconds at work
    redone_share: float  # of them, spent on results that did not count in the end
    audits: int
    waived: int
    rejected: int
    suspected: int
    lies_kept: int  # lies that count at the end
    hours: float


@dataclass
class World:
    """One run."""

    manifest: RunManifest
    nodes: list[Node]
    blobs: BlobStore
    folder: Path
    blocks: dict[tuple[int, int], bytes]
    now: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"audit": 0.0, "all": 0.0})
    events: dict[str, int] = field(default_factory=dict)
    _heap: list[tuple[float, int, int]] = field(default_factory=list)
    _conversations: dict[int, Node] = field(default_factory=dict)
    _count: int = 0
    _spent: dict[str, float] = field(default_factory=dict)  # unit -> seconds of what counts
    _lied: dict[str, str] = field(default_factory=dict)  # unit -> node whose lie counts
    wasted_s: float = 0.0
    suspected: int = 0

    def run(self, coordinator: Coordinator) -> None:
        """Until the run is over, or nothing more happens."""
        self.coordinator = coordinator
        self._settle(coordinator.start(self.now))
        for node in self.nodes:
            self._enter(node)
        while self._heap or coordinator.deadline() is not None:
            due = coordinator.deadline()
            if self._heap and (due is None or self._heap[0][0] <= due):
                self.now, _, index = heapq.heappop(self._heap)
                self._hand_in(self.nodes[index])
            else:
                assert due is not None
                self.now = max(self.now, due)
                self._settle(coordinator.tick(self.now))
            if self.now > END_S or coordinator.state.phase in (Phase.FINISHED, Phase.FAILED):
                return

    def _enter(self, node: Node) -> None:
        secret = hashlib.sha256(node.name.encode()).hexdigest()
        self._ask(msg.MakeInvite(secret, self.now + 60), None)
        self._ask(msg.Enrol(secret, secret, node.name), None)
        node.node_id = next(
            known.node_id
            for known in self.coordinator.state.nodes.values()
            if known.name == node.name
        )
        capabilities = msg.Capabilities(
            corpus_digest=self.manifest.corpus_digest, tokens_per_s=node.speed
        )
        key = hashlib.sha256(secret.encode()).digest()
        self._ask(msg.Join(node.node_id, 1, 1, key, capabilities), None)
        self._ask(msg.Exchange(node.node_id, 1), node)

    def _hand_in(self, node: Node) -> None:
        unit, node.unit = node.unit, None
        if unit is None:  # it was told to come back
            self._ask(msg.Exchange(node.node_id, 1), node)
            return
        spent = self.now - node.began
        self.seconds["all"] += spent
        self.seconds["audit"] += spent * (unit.key.kind is UnitKind.AUDIT)
        inputs = {ref.name: self.blobs.get(ref.digest) for ref in unit.inputs}
        lies = node.liar.lies if node.liar else 0
        outputs = node.outputs(unit, inputs)
        lied = node.liar is not None and node.liar.lies > lies
        if lied and node.first_lie is None:
            node.first_lie = self.now
        if "scores" in outputs:
            self.blocks[unit.key.expert, unit.key.index] = outputs["scores"]
        refs = tuple(self.blobs.put(name, data) for name, data in outputs.items())
        figures = {"from_step": 0.0} if unit.key.kind is UnitKind.TRAIN_EXPERT else {}
        result = Result(unit.unit_id, refs, figures)
        self._spent[unit.unit_id] = spent
        self._lied.pop(unit.unit_id, None)
        if lied:
            self._lied[unit.unit_id] = node.node_id
        try:
            check_result(self.manifest, result, self.blobs, unit.redo)
            self._ask(msg.Exchange(node.node_id, 1, finished=result), node)
        except PeerError as error:
            self._caught(node, f"refused: {error}")
            self._lied.pop(unit.unit_id, None)
            self.wasted_s += spent
            try:
                self._ask(msg.Leave(node.node_id, 1), None)
            except PeerError:
                return  # it was shut out

    def _ask(self, message: msg.Request, node: Node | None) -> None:
        self._count += 1
        if node is not None:
            self._conversations[self._count] = node
        self._settle(self.coordinator.handle(message, self._count, self.now))

    def _settle(self, ready: Ready) -> None:
        for event in ready.events:
            self._heard(event)
        for reply in ready.replies:
            node = self._conversations.pop(reply.conversation, None)
            if node is not None and isinstance(reply.answer, msg.Order):
                self._ordered(node, reply.answer)
        for job in ready.jobs:
            outcome = run_job(self.manifest, job, self.folder)
            self.suspected += len(outcome.units) if isinstance(outcome, jmsg.Suspects) else 0
            self._settle(self.coordinator.job_done(outcome, self.now))

    def _ordered(self, node: Node, order: msg.Order) -> None:
        if order.stop:
            node.end = node.end or order.reason
            return
        node.unit, node.began = order.unit, self.now
        wait_s = order.wait_s
        if order.unit is not None:
            wait_s = work_s(self.manifest, order.unit) / node.speed
        self._count += 1
        heapq.heappush(self._heap, (self.now + wait_s, self._count, self.nodes.index(node)))

    def _heard(self, event: ev.Event) -> None:
        name = type(event).__name__
        if isinstance(event, ev.AuditSettled) and event.verdict == "waived":
            name = "Waived"
        self.events[name] = self.events.get(name, 0) + 1
        undone: tuple[str, ...] = ()
        if isinstance(event, ev.UnitRejected):
            undone = (event.unit_id,)
        if isinstance(event, ev.NodeQuarantined):
            undone = event.undone
            node = next(node for node in self.nodes if node.node_id == event.node_id)
            node.quarantined = True
            self._caught(node, event.reason)
        for unit_id in undone:
            self.wasted_s += self._spent.pop(unit_id, 0.0)
            self._lied.pop(unit_id, None)

    def _caught(self, node: Node, why: str) -> None:
        node.end = why
        if node.liar is not None and node.caught_units is None:
            node.caught_units = node.liar.lies
            node.caught_s = self.now - (node.first_lie or self.now)

    def counts(self) -> Counts:
        """Figures of the run."""
        liars = [node for node in self.nodes if node.liar is not None and node.liar.lies]
        caught = [node for node in liars if node.caught_units is not None]
        honest = [node for node in self.nodes if node.liar is None]
        return Counts(
            finished=self.coordinator.state.phase is Phase.FINISHED,
            liars=len(liars),
            caught=len(caught),
            lies_until_caught=[node.caught_units or 0 for node in caught],
            hours_until_caught=[(node.caught_s or 0.0) / 3600 for node in caught],
            honest_quarantined=sum(node.quarantined for node in honest),
            audit_share=self.seconds["audit"] / max(1e-9, self.seconds["all"]),
            redone_share=self.wasted_s / max(1e-9, self.seconds["all"]),
            audits=self.events.get("AuditOpened", 0),
            waived=self.events.get("Waived", 0),
            rejected=self.events.get("UnitRejected", 0),
            suspected=self.suspected,
            lies_kept=len(self._lied),
            hours=self.now / 3600,
        )


def simulate(kind: str, fraction: float, seed: int, *, patient: bool = False) -> Counts:
    """One run of twenty nodes, of which `fraction` are liars of this kind."""
    manifest = counts_manifest(seed)
    random = np.random.default_rng(seed)
    liars = set(random.permutation(NODES)[: round(fraction * NODES)].tolist()) if kind else set()
    model, blocks = Model(manifest), {}
    patience = manifest.config.audit.first_units if patient else 0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        folder = Path(place)
        nodes = []
        for index in range(NODES):
            liar = None
            if index in liars:
                liar = Liar(kind, manifest, model.do, blocks, 1000 * seed + index, patience)
            speed = float(random.uniform(0.7, 1.4))
            nodes.append(Node(f"n{index}", speed, liar.outputs if liar else model.do, liar))
        world = World(manifest, nodes, BlobStore(folder), folder, blocks)
        world.run(Coordinator(manifest, 0.0, secret=f"attacks {seed}".encode()))
        return world.counts()
