"""A whole private run in one process: a real run folder and `Host`, silos that ask it directly."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from support.tiny_units import signed_result

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.limits import Limits
from smalltalk_fed.worksite.work import Done, do_unit


@dataclass
class Silo:
    """A node with text of its own; computes for real."""

    host: Host
    place: Workplace
    seat: int
    key: SigningKey = field(default_factory=SigningKey.create)
    handed_in: list[tuple[Unit, Done]] = field(default_factory=list)

    async def run(self) -> None:
        """Enrol, join, work until the run ends."""
        host, name = self.host, f"silo-{self.seat}"
        secret, sha256 = (hashlib.sha256(f"{x} {name}".encode()).hexdigest() for x in "ab")
        await host.ask(msg.MakeInvite(secret, host.clock.now() + 3600))
        enrolled = await host.ask(msg.Enrol(secret, sha256, name))
        assert isinstance(enrolled, msg.Enrolled)
        text = self.place.corpus
        said = msg.Capabilities(
            corpus_digest="d" * 64,
            train_sequences=len(text.train),
            heldout_sequences=len(text.heldout),
        )
        node_id, shared = enrolled.node_id, self.place.limits.weights
        join = msg.Join(node_id, 1, 1, self.key.public_bytes, said, self.seat, shared)
        await host.ask(join)
        order = await host.ask(msg.Exchange(node_id, 1))
        while isinstance(order, msg.Order) and not order.stop:
            result = None
            if order.unit is not None:
                result = self._do(order.unit, node_id)
            order = await host.ask(msg.Exchange(node_id, 1, finished=result))
        assert isinstance(order, msg.Order)
        assert not order.failed, order.reason

    def _do(self, unit: Unit, node_id: str) -> object:
        blobs = self.host.blobs
        inputs = {ref.name: blobs.path(ref.digest) for ref in unit.inputs}
        done = do_unit(
            unit, inputs, self.place, lambda part, figures: None, lambda step, path: None,
            lambda: False,
        )  # fmt: skip
        self.handed_in.append((unit, done))
        data = {
            name: out if isinstance(out, bytes) else out.read_bytes()
            for name, out in done.outputs.items()
        }
        refs = tuple(blobs.put(name, each) for name, each in data.items())
        run_id = self.place.manifest.run_id
        return signed_result(self.key, run_id, node_id, unit, refs, done.figures)


def finish_private_run(
    folder: RunFolder,
    texts: list[TokenCorpus],
    weights: tuple[str, ...],
    public: TokenCorpus | None = None,
) -> list[Silo]:
    """Take a new run to its end; by seat: the silos' texts, and whom they give their experts.

    What a silo keeps is beside the run's folder, in `silo-SEAT`.
    """

    async def work() -> list[Silo]:
        journal = Journal(folder.journal)
        host = Host(
            folder.manifest,
            journal,
            folder.blobs,
            SystemClock(),
            executor=ThreadPoolExecutor(1),
            on_finished=lambda coordinator, blobs: (
                assemble_mixture(folder, coordinator.state, blobs) and None
            ),
        )
        host.start()
        silos = [
            Silo(host, _workplace(folder, text, seat, weights[seat], public), seat)
            for seat, text in enumerate(texts)
        ]
        await asyncio.gather(*(silo.run() for silo in silos))
        await host.stop()
        journal.close()
        return silos

    return asyncio.run(asyncio.wait_for(work(), 100))


def _workplace(
    folder: RunFolder, text: TokenCorpus, seat: int, weights: str, public: TokenCorpus | None
) -> Workplace:
    here: Path = folder.path.parent / f"silo-{seat}"
    (here / "work").mkdir(parents=True)
    limits = Limits.model_validate({"weights": weights})
    return Workplace(folder.manifest, text, here / "work", here / "experts", "cpu", limits, public)
