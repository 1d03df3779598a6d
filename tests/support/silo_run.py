"""A whole private run through the core, the host and the nodes' own units, in one process.

Random text, models that train in milliseconds. Silos ask the host directly.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from support.local_run import ADDRESSES
from support.tiny_run import LENGTH, SHAPE, VOCABULARY, write_tiny_corpus
from support.tiny_units import signed_result

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Result, Unit
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.handed_in import check_signature
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.limits import Limits
from smalltalk_fed.worksite.work import Done, do_unit

WEIGHTS = ("operator", "never", "public")  # by seat

Between = Callable[["Silo", Unit, Result], Awaitable[str]]


def make_folder(
    path: Path, addresses: Addresses = ADDRESSES, now: float = 1.0, **changes: dict[str, object]
) -> RunFolder:
    """A run of four experts on three seats; `changes` are tables of run.toml."""
    tokenizer = path / "tokenizer.json"
    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    tokenizer.write_text(json.dumps({"model": {"vocab": vocabulary}}))
    optimizer = {"learning_rate": 0.01, "clip": 1.0}
    table: dict[str, dict[str, object]] = {
        "run": {"experts": 4, "regime": "private", "poll_s": 1.0},
        "sequence": {"length": LENGTH, "prefix": 8},
        "router": {
            "model": SHAPE,
            "rounds": 3,
            "chunk_sequences": 40,
            "batch_sequences": 8,
            "optimizer": optimizer,
        },
        "expert": {"model": SHAPE, "steps": 4, "batch_sequences": 4, "optimizer": optimizer},
        "private": {
            "experts_of": [1, 1, 2],
            "exchange_rounds": 2,
            "price_rounds": 3,
            "count_floor": 1,
        },
        "compute": {"threads": 1, "score_batch": 16},
    }
    for section, values in changes.items():
        table[section] = table.get(section, {}) | values
    config = parse_config(table, "test")
    return RunFolder.create(path / "run", config, "", tokenizer, addresses, now)


@dataclass
class Silo:
    """A node with text of its own that asks the host directly."""

    host: Host
    place: Workplace
    seat: int
    key: SigningKey = field(default_factory=SigningKey.create)
    handed_in: list[tuple[Unit, Done]] = field(default_factory=list)
    node_id: str = ""
    # What happens when a unit was done: hand it in if it says nothing, "drop" it, or "stop".
    between: Between | None = None

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
        self.node_id = node_id
        join = msg.Join(node_id, 1, 1, self.key.public_bytes, said, self.seat, shared)
        await host.ask(join)
        order = await host.ask(msg.Exchange(node_id, 1))
        while isinstance(order, msg.Order) and not order.stop:
            result = None
            if order.unit is not None:
                result = self._do(order.unit, node_id)
                said = await self.between(self, order.unit, result) if self.between else ""
                if said == "stop":
                    return
                result = None if said == "drop" else result
            exchange = msg.Exchange(node_id, 1, finished=result)
            if result is not None:
                check_signature(host.coordinator.state, exchange, result)
            order = await host.ask(exchange)
        assert isinstance(order, msg.Order)
        assert not order.failed, order.reason

    def _do(self, unit: Unit, node_id: str) -> Result:
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


def tiny_texts(place: Path) -> list[TokenCorpus]:
    """Three silos' texts."""
    return [write_tiny_corpus(place / str(seed), seed) for seed in range(3)]


def run_silos(
    folder: RunFolder,
    texts: list[TokenCorpus],
    between: Between | None = None,
    weights: Sequence[str] = WEIGHTS,
    public: TokenCorpus | None = None,
) -> list[Silo]:
    """Take the run to its end, and make its mixture; the silos that took part.

    `weights`: by seat, whom they give their experts. What a silo keeps is beside the run's
    folder, in `silo-SEAT`.
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
        silos = []
        for seat, text in enumerate(texts):
            here = folder.path.parent / f"silo-{seat}"
            (here / "work").mkdir(parents=True)
            limits = Limits.model_validate({"weights": weights[seat]})
            place = Workplace(
                folder.manifest, text, here / "work", here / "experts", "cpu", limits, public
            )
            silos.append(Silo(host, place, seat, between=between))
        await asyncio.gather(*(silo.run() for silo in silos))
        await host.stop()
        journal.close()
        return silos

    return asyncio.run(asyncio.wait_for(work(), 100))
