"""Nodes of a whole run in one process, some of which lie; all compute for real."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from support.tiny_units import UnitDoer, signed_result

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, Unit, UnitKind
from smalltalk_fed.errors import PeerError
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.idlists import decode_ids, encode_ids
from smalltalk_fed.mixture.permutation import chunk_ids
from smalltalk_fed.mixture.scores import decode_scores, encode_scores
from smalltalk_fed.wire.signing import SigningKey

Inputs = dict[str, bytes]
Work = Callable[[UnitDoer, Unit, Inputs], dict[str, bytes]]


def honest(doer: UnitDoer, unit: Unit, inputs: Inputs) -> dict[str, bytes]:
    """What the unit gives."""
    return doer.do(unit, inputs).outputs


def random_scores(doer: UnitDoer, unit: Unit, inputs: Inputs) -> dict[str, bytes]:
    """Score blocks that look like scores and are none."""
    outputs = dict(honest(doer, unit, inputs))
    if "scores" in outputs:
        true = decode_scores(outputs["scores"])
        random = np.random.default_rng(unit.key.index)
        lie = random.normal(true.mean(), true.std(), len(true))
        outputs["scores"] = encode_scores(np.minimum(lie, 0.0))
    return outputs


def wrong_domain(doer: UnitDoer, unit: Unit, inputs: Inputs) -> dict[str, bytes]:
    """Experts of all text but their own."""
    if unit.key.kind is UnitKind.TRAIN_EXPERT:
        mine = decode_ids(inputs["segment"])
        others = np.setdiff1d(np.arange(doer.manifest.train_sequences), mine)
        unit, inputs = _with_input(unit, inputs, "segment", encode_ids(others))
    return honest(doer, unit, inputs)


def wrong_share(doer: UnitDoer, unit: Unit, inputs: Inputs) -> dict[str, bytes]:
    """Routers of all text of the chunk but their own, from the second round on."""
    if unit.key.kind is UnitKind.ROUTER_ROUND and unit.key.index > 1:
        router = doer.manifest.config.router
        seed, count = doer.manifest.config.run.seed, doer.manifest.train_sequences
        chunk = chunk_ids(seed, count, unit.key.index - 1, router.chunk_sequences)
        data = encode_ids(np.setdiff1d(chunk, decode_ids(inputs["share"])))
        unit, inputs = _with_input(unit, inputs, "share", data)
    return honest(doer, unit, inputs)


def accusing(doer: UnitDoer, unit: Unit, inputs: Inputs) -> dict[str, bytes]:
    """Honest work, and opinions on others' that are made up."""
    outputs = dict(honest(doer, unit, inputs))
    if "audit" in outputs:
        outputs["audit"] = encode_scores(decode_scores(outputs["audit"]) * 0.5)
    return outputs


def _with_input(unit: Unit, inputs: Inputs, name: str, data: bytes) -> tuple[Unit, Inputs]:
    """Another piece of work, to the doer as well."""
    refs = [ref for ref in unit.inputs if ref.name != name]
    new = BlobRef(name, hashlib.sha256(data).hexdigest(), len(data))
    return replace(unit, inputs=(*refs, new)), inputs | {name: data}


@dataclass
class LyingNode:
    """A node that does its units in its own way; `end` is why it stopped."""

    host: Host
    doer: UnitDoer
    name: str
    work: Work
    tokens_per_s: float
    key: SigningKey = field(default_factory=SigningKey.create)
    node_id: str = ""
    end: str = ""
    done: list[str] = field(default_factory=list)  # units that it did

    async def enter(self) -> None:
        """Enrol and join."""
        host, name = self.host, hashlib.sha256(self.name.encode()).hexdigest()
        await host.ask(msg.MakeInvite(name, host.clock.now() + 3600))
        enrolled = await host.ask(msg.Enrol(name, name, self.name))
        assert isinstance(enrolled, msg.Enrolled)
        self.node_id = enrolled.node_id
        capabilities = msg.Capabilities(
            corpus_digest=host.manifest.corpus_digest, tokens_per_s=self.tokens_per_s
        )
        await host.ask(msg.Join(self.node_id, 1, 1, self.key.public_bytes, capabilities))

    async def take_part(self) -> None:
        """Work until told to stop, or refused."""
        host, result = self.host, None
        while not self.end:
            try:
                order = await host.ask(msg.Exchange(self.node_id, 1, finished=result))
            except PeerError as error:
                self.end = str(error)
                with contextlib.suppress(PeerError):
                    await host.ask(msg.Leave(self.node_id, 1))
                return
            assert isinstance(order, msg.Order)
            if order.stop:
                self.end = order.reason
            result = None
            if order.unit is not None:
                self.done.append(order.unit.unit_id)
                inputs = {ref.name: host.blobs.get(ref.digest) for ref in order.unit.inputs}
                # The loop goes on: other nodes ask meanwhile, as on machines of their own.
                outputs = await asyncio.to_thread(self.work, self.doer, order.unit, inputs)
                refs = tuple(host.blobs.put(name, data) for name, data in outputs.items())
                figures = dict(self.doer.do(order.unit, inputs).figures)
                figures.pop("tokens_per_s", None)  # the speed that it said stays
                run_id = host.manifest.run_id
                result = signed_result(self.key, run_id, self.node_id, order.unit, refs, figures)


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    state: HardState
    nodes: dict[str, LyingNode]
    mixture: dict[str, bytes]  # files by path; not mixture.json, which names who did what


def play(folder: RunFolder, doer: UnitDoer, nodes: Sequence[tuple[str, Work]]) -> Ended:
    """Take a new run to its end with these nodes, the fastest first."""

    async def work() -> Ended:
        journal, jobs = Journal(folder.journal), ThreadPoolExecutor(1)
        host = Host(
            folder.manifest,
            journal,
            folder.blobs,
            SystemClock(),
            executor=jobs,
            audit_secret=folder.audit_secret(),
        )
        host.start()
        team = [
            LyingNode(host, doer, name, way, 1000.0 * (len(nodes) - index))
            for index, (name, way) in enumerate(nodes)
        ]
        for node in team:
            await node.enter()
        await asyncio.gather(*(node.take_part() for node in team))
        state = host.coordinator.state
        assemble_mixture(folder, state, host.blobs)
        await host.stop()
        journal.close()
        return Ended(state, {node.name: node for node in team}, _files(folder))

    return asyncio.run(asyncio.wait_for(work(), 280))


def _files(folder: RunFolder) -> dict[str, bytes]:
    paths = sorted(path for path in folder.mixture.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder.mixture)): path.read_bytes()
        for path in paths
        if path.name != "mixture.json"
    }
