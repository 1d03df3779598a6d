"""A whole private run through the core, the host and the nodes' own units, in one process.

Random text, models that train in milliseconds: what comes out is the oracle's, byte for byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.leaks import Haystack, token_pieces
from support.local_run import ADDRESSES
from support.tiny_run import LENGTH, SHAPE, VOCABULARY, write_tiny_corpus
from support.tiny_units import signed_result

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.package import MixtureManifest, present_experts, read_mixture
from smalltalk_fed.train.private_em import run_private_em
from smalltalk_fed.wire.egress import blob_kind, figure_is_declared, may_leave
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.limits import Limits
from smalltalk_fed.worksite.work import Done, do_unit

WEIGHTS = ("operator", "never", "public")  # by seat


def make_folder(path: Path) -> RunFolder:
    """A run of four experts on three seats."""
    tokenizer = path / "tokenizer.json"
    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    tokenizer.write_text(json.dumps({"model": {"vocab": vocabulary}}))
    optimizer = {"learning_rate": 0.01, "clip": 1.0}
    table = {
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
    config = parse_config(table, "test")
    return RunFolder.create(path / "run", config, "", tokenizer, ADDRESSES, now=1.0)


@dataclass
class Silo:
    """A node with text of its own that asks the host directly."""

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_folder(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[TokenCorpus]:
    place = tmp_path_factory.mktemp("texts")
    return [write_tiny_corpus(place / str(seed), seed) for seed in range(3)]


@pytest.fixture(scope="module")
def silos(folder: RunFolder, texts: list[TokenCorpus]) -> list[Silo]:
    """The silos of a run that was taken to its end."""

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
            limits = Limits.model_validate({"weights": WEIGHTS[seat]})
            place = Workplace(folder.manifest, text, here / "work", here / "experts", "cpu", limits)
            silos.append(Silo(host, place, seat))
        await asyncio.gather(*(silo.run() for silo in silos))
        await host.stop()
        journal.close()
        return silos

    return asyncio.run(asyncio.wait_for(work(), 100))


@pytest.fixture(scope="module")
def mixture(folder: RunFolder, silos: list[Silo]) -> MixtureManifest:
    return read_mixture(folder.mixture)


def test_routers_and_prices_are_those_of_the_oracle(
    folder: RunFolder, texts: list[TokenCorpus], mixture: MixtureManifest
) -> None:
    oracle = run_private_em(folder.manifest, texts)
    for expert, router in enumerate(mixture.routers):
        assert (folder.mixture / router.file).read_bytes() == oracle.routers[expert]
    assert list(mixture.prices) == oracle.prices_E.tolist()
    assert any(mixture.prices)


def test_only_experts_that_their_owners_gave_are_in_the_mixture(
    folder: RunFolder, mixture: MixtureManifest
) -> None:
    owners = [WEIGHTS[0], WEIGHTS[1], WEIGHTS[2], WEIGHTS[2]]
    assert [expert.share for expert in mixture.experts] == owners
    assert [bool(expert.sha256) for expert in mixture.experts] == [True, False, True, True]
    assert present_experts(folder.mixture, mixture) == [0, 2, 3]
    assert [expert.sequences for expert in mixture.experts] == [96, 96, 48, 48]
    for seat, expert in ((0, 0), (1, 1), (2, 2), (2, 3)):  # all of them are at their silos
        home = folder.path.parent / f"silo-{seat}" / "experts" / folder.manifest.run_id
        assert (home / str(expert) / "model.safetensors").exists()


def test_the_mixture_says_how_it_came_out(mixture: MixtureManifest) -> None:
    metrics = mixture.metrics
    assert [row["name"] for row in metrics["seats"]] == ["silo-0", "silo-1", "silo-2"]
    assert [row["share"] for row in metrics["seats"]] == list(WEIGHTS)
    assert metrics["prices"]["turn"] == 2
    assert metrics["heldout"]["suffix_ppl"] > 1
    assert len(metrics["heldout"]["silos"]) == 3


def test_what_is_handed_in_is_declared_and_holds_no_text(silos: list[Silo]) -> None:
    for silo in silos:
        rows = silo.place.corpus.train.rows(np.arange(0, 96, 4))
        pieces = set().union(*(token_pieces(row.tolist()) for row in rows))
        assert len(silo.handed_in) > 5
        for unit, done in silo.handed_in:
            assert [name for name in done.figures if not figure_is_declared(name)] == []
            for name, out in done.outputs.items():
                assert may_leave(silo.place.manifest, blob_kind(name), silo.place.limits.weights)
                data = out if isinstance(out, bytes) else out.read_bytes()
                assert Haystack({unit.unit_id: data}).find(pieces) == []
