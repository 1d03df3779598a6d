"""A whole run in one process: a real run folder and `Host`, nodes that ask it directly."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from support.tiny_run import tiny_manifest
from support.tiny_units import UnitDoer, signed_result

from smalltalk_fed.core import messages as msg
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.wire.signing import SigningKey

ADDRESSES = Addresses("127.0.0.1:1", "127.0.0.1:2")


def make_run_folder(path: Path, corpus: TokenCorpus, **changes: dict[str, object]) -> RunFolder:
    """A run folder over a tiny corpus; `changes` are tables of run.toml."""
    config = tiny_manifest(corpus, **changes).config
    return RunFolder.create(path, config, "# tiny\n", corpus.folder, ADDRESSES, now=1.0)


@dataclass
class LocalNode:
    """Takes part until the run ends; computes for real."""

    host: Host
    doer: UnitDoer
    name: str
    key: SigningKey = field(default_factory=SigningKey.create)

    async def run(self) -> str:
        """Enrol, join, work; returns the node's id."""
        host, key = self.host, self.key
        secret = hashlib.sha256(f"secret {self.name}".encode()).hexdigest()
        await host.ask(msg.MakeInvite(secret, host.clock.now() + 3600))
        sha256 = hashlib.sha256(self.name.encode()).hexdigest()
        enrolled = await host.ask(msg.Enrol(secret, sha256, self.name))
        assert isinstance(enrolled, msg.Enrolled)
        node_id = enrolled.node_id
        capabilities = msg.Capabilities(corpus_digest=host.manifest.corpus_digest)
        await host.ask(msg.Join(node_id, 1, 1, key.public_bytes, capabilities))
        order = await host.ask(msg.Exchange(node_id, 1))
        while isinstance(order, msg.Order) and not order.stop:
            result = None
            if order.unit is not None:
                inputs = {ref.name: host.blobs.get(ref.digest) for ref in order.unit.inputs}
                done = self.doer.do(order.unit, inputs)
                refs = tuple(host.blobs.put(name, data) for name, data in done.outputs.items())
                run_id = host.manifest.run_id
                result = signed_result(key, run_id, node_id, order.unit, refs, done.figures)
            order = await host.ask(msg.Exchange(node_id, 1, finished=result))
        assert isinstance(order, msg.Order)
        assert not order.failed, order.reason
        return node_id


def finish_run(
    folder: RunFolder, corpus: TokenCorpus, names: tuple[str, ...] = ("a", "b")
) -> dict[str, SigningKey]:
    """Take a new run to its end; returns the nodes' signing keys by id."""

    async def work() -> dict[str, SigningKey]:
        journal = Journal(folder.journal)
        jobs = ThreadPoolExecutor(1)
        host = Host(folder.manifest, journal, folder.blobs, SystemClock(), executor=jobs)
        doer = UnitDoer(folder.manifest, corpus)
        host.start()
        nodes = [LocalNode(host, doer, name) for name in names]
        ids = await asyncio.gather(*(node.run() for node in nodes))
        await host.stop()
        journal.close()
        return {node_id: node.key for node_id, node in zip(ids, nodes, strict=True)}

    return asyncio.run(asyncio.wait_for(work(), 100))
