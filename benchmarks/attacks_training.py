"""Real runs with liars, in one process: what lies do to the mixture, with checks and without.

Ten nodes, two of them liars that are the fastest, so that they get work. Host, core, judge
and units are the real ones; nodes talk to the host directly. Units that were computed before
with the same inputs are not computed again, which is what makes it quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from attacks_lies import Blobs, Liar

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_manifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.handout import final_routers
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, Unit, UnitKey, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import PeerError
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.model.state import state_from_bytes
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score, sequence_losses
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.work import do_unit

NODES, LIARS = 10, 2
CHECKED, UNCHECKED = 0.1, 0.0  # audit.rate


def training_manifest(corpus: TokenCorpus, rate: float, seed: int = 1) -> RunManifest:
    """Four experts that learn for seconds; the demo's rates."""
    table = {
        "run": {"experts": 4, "nodes_to_start": NODES, "poll_s": 1.0, "seed": seed,
                "spare_copies": 0, "lease_s": 3600.0},
        "sequence": {"length": 128, "prefix": 32},
        "router": {"model": "router-mini", "rounds": 8, "chunk_sequences": 640,
                   "batch_sequences": 32,
                   "optimizer": {"learning_rate": 8e-3, "warmup_steps": 2, "clip": 1.0}},
        "expert": {"model": "mini", "steps": 64, "batch_sequences": 16,
                   "optimizer": {"learning_rate": 4e-3, "warmup_steps": 10,
                                 "final_fraction": 0.05, "clip": 1.0}},
        "compute": {"threads": 1, "train_dtype": "float32"},
        "audit": {"rate": rate},
    }  # fmt: skip
    return make_manifest(parse_config(table, "attacks"), corpus.manifest, "attacks", 0)


@dataclass
class Honest:
    """Computes units, and the perplexity of mixtures, each distinct one once."""

    corpus: TokenCorpus
    known: dict[tuple[object, ...], Blobs] = field(default_factory=dict)
    perplexities: dict[tuple[str, ...], float] = field(default_factory=dict)

    def doer(self, manifest: RunManifest) -> Callable[[Unit, Blobs], Blobs]:
        """The honest computation of this run's units."""

        def do(unit: Unit, inputs: Blobs) -> Blobs:
            digests = tuple((n, hashlib.sha256(d).digest()) for n, d in sorted(inputs.items()))
            # Opinions on one result are the same, whatever their number.
            about = unit.key.target or unit.unit_id
            what = (unit.key.kind, about, unit.sample, unit.redo, digests)
            if what not in self.known:
                self.known[what] = self._compute(manifest, unit, inputs)
            return self.known[what]

        return do

    def perplexity(self, manifest: RunManifest, state: HardState, host: Host) -> float:
        """Of a finished run's mixture."""
        routers, experts = mixture_of(state)
        what = (*routers, *experts)
        if what not in self.perplexities:
            self.perplexities[what] = perplexity(
                manifest,
                self.corpus,
                [host.blobs.get(digest) for digest in routers],
                [host.blobs.get(digest) for digest in experts],
            )
        return self.perplexities[what]

    def _compute(self, manifest: RunManifest, unit: Unit, inputs: Blobs) -> Blobs:
        if unit.key.kind is UnitKind.EVALUATE:
            return {}
        with tempfile.TemporaryDirectory() as place:
            folder, files = Path(place), {}
            for name, data in inputs.items():
                files[name] = folder / f"input-{name}"
                files[name].write_bytes(data)
            work = Workplace(manifest, self.corpus, folder / "work", folder / "experts", "cpu")
            done = do_unit(unit, files, work, lambda *_: None, lambda *_: None, lambda: False)
            return {
                name: source if isinstance(source, bytes) else source.read_bytes()
                for name, source in done.outputs.items()
            }


@dataclass
class Node:
    """A node that talks to the host; `end` is why it stopped."""

    host: Host
    name: str
    speed: float
    outputs: Callable[[Unit, Blobs], Blobs]
    blocks: dict[tuple[int, int], bytes]
    end: str = ""

    async def run(self) -> None:
        """Take part until told to stop, or refused."""
        host = self.host
        secret = hashlib.sha256(self.name.encode()).hexdigest()
        await host.ask(msg.MakeInvite(secret, host.clock.now() + 3600))
        enrolled = await host.ask(msg.Enrol(secret, secret, self.name))
        assert isinstance(enrolled, msg.Enrolled)
        node_id = enrolled.node_id
        capabilities = msg.Capabilities(
            corpus_digest=host.manifest.corpus_digest, tokens_per_s=self.speed
        )
        await host.ask(
            msg.Join(node_id, 1, 1, hashlib.sha256(secret.encode()).digest(), capabilities)
        )
        result: Result | None = None
        while True:
            try:
                order = await host.ask(msg.Exchange(node_id, 1, finished=result))
            except PeerError as error:
                self.end = f"refused: {error}"
                with contextlib.suppress(PeerError):
                    await host.ask(msg.Leave(node_id, 1))
                return
            assert isinstance(order, msg.Order)
            if order.stop:
                self.end = order.reason
                return
            await asyncio.sleep(0)
            result = self._do(order.unit) if order.unit is not None else None

    def _do(self, unit: Unit) -> Result:
        inputs = {ref.name: self.host.blobs.get(ref.digest) for ref in unit.inputs}
        outputs = self.outputs(unit, inputs)
        if "scores" in outputs:
            self.blocks[unit.key.expert, unit.key.index] = outputs["scores"]
        refs = tuple(self.host.blobs.put(name, data) for name, data in outputs.items())
        figures = {"from_step": 0.0} if unit.key.kind is UnitKind.TRAIN_EXPERT else {}
        return Result(unit.unit_id, refs, figures)


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    perplexity: float | None  # of held-out suffixes; None: the run failed
    ends: dict[str, str]  # of the liars
    reason: str = ""


def run(honest: Honest, kind: str, rate: float, folder: Path, seed: int = 1) -> Outcome:
    """One run; `kind` "" has no liars."""
    corpus = honest.corpus
    manifest = training_manifest(corpus, rate, seed)
    folder.mkdir()
    do, blocks = honest.doer(manifest), {}

    async def work() -> Outcome:
        journal = Journal(folder / "journal.sqlite")
        host = Host(
            manifest,
            journal,
            folder / "blobs",
            SystemClock(),
            executor=ThreadPoolExecutor(1),
            audit_secret=b"attacks",
        )
        host.start()
        nodes = []
        for index in range(NODES):
            lies = bool(kind) and index < LIARS
            liar = Liar(kind, manifest, do, blocks, index) if lies else None
            speed = 1000.0 * (NODES - index)
            nodes.append(Node(host, f"node-{index}", speed, liar.outputs if liar else do, blocks))
        await asyncio.gather(*(node.run() for node in nodes))
        state = host.coordinator.state
        ends = {node.name: node.end for node in nodes[:LIARS]} if kind else {}
        failed = state.phase.value != "finished"
        found = None if failed else honest.perplexity(manifest, state, host)
        await host.stop()
        journal.close()
        return Outcome(found, ends, state.reason)

    return asyncio.run(work())


def mixture_of(state: HardState) -> tuple[list[str], list[str]]:
    """Digests of a finished run's routers and of its experts' weights."""
    weights = []
    for e in range(state.experts):
        accepted = state.finished[UnitKey(UnitKind.TRAIN_EXPERT, e).unit_id]
        weights.append(next(ref.digest for ref in accepted.outputs if ref.name == "weights"))
    return [ref.digest for ref in final_routers(state)], weights


def perplexity(
    manifest: RunManifest, corpus: TokenCorpus, routers: list[bytes], experts: list[bytes]
) -> float:
    """Of the mixture's suffixes, every held-out sequence routed as a prompt is."""
    prefix, batch = manifest.config.sequence.prefix, 64
    ids = np.arange(len(corpus.heldout))
    models = [build_router(manifest, e, data) for e, data in enumerate(routers)]
    expert_N = route(score(models, corpus.heldout, ids, prefix, batch_sequences=batch))
    total = 0.0
    for e, data in enumerate(experts):
        model = build_expert(manifest, "expert")
        state_from_bytes(model, data)
        mine = ids[expert_N == e]
        if len(mine):
            _, suffix = sequence_losses(model, corpus.heldout, mine, prefix, batch_sequences=batch)
            total += float(suffix.sum())
    tokens = len(ids) * (manifest.config.sequence.length - prefix)
    return math.exp(total / tokens)
