"""Small private runs for the core's tests: three seats, the last with two experts."""

from __future__ import annotations

from typing import Any

from support.core_world import FakeNode, World

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import CorpusManifest, RunManifest, make_private_manifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import Event, UnitAccepted
from smalltalk_fed.core.silo_events import ExpertWithdrawn, PricesMoved
from smalltalk_fed.core.units import UnitKey

NAMES = "abc"


def private_manifest(public_sequences: int = 0, **tables: Any) -> RunManifest:
    """E = 4 on seats of 1, 1 and 2; two blocks of two rounds, three counts after the last."""
    private = {
        "experts_of": [1, 1, 2],
        "exchange_rounds": 2,
        "price_rounds": 3,
        "train_sequences_min": 8,
        "heldout_sequences_min": 2,
        "public_share": 0.25 if public_sequences else 0.0,
    }
    config = parse_config(
        {
            "run": {"experts": 4, "lease_s": 20.0, "poll_s": 10.0, "regime": "private"},
            "sequence": {"length": 16, "prefix": 8},
            "router": {
                "rounds": tables.get("rounds", 3),
                "chunk_sequences": 10,
                "model": "router-mini",
            },
            "expert": {"model": "mini", "steps": 2, "batch_sequences": 2}
            | tables.get("expert", {}),
            "private": private | tables.get("private", {}),
        },
        "test",
    )
    public = _public(public_sequences) if public_sequences else None
    return make_private_manifest(config, "d" * 64, 300, "test-run", 0, public)


def _public(sequences: int) -> CorpusManifest:
    """A public corpus of so many sequences to train on, and some held out that nobody needs."""
    parts = {
        name: {"shards": [{"file": f"{name}.bin", "sequences": count, "sha256": "e" * 64}],
               "documents": count}
        for name, count in (("train", sequences), ("heldout", 5))
    }  # fmt: skip
    return CorpusManifest.model_validate(
        {"sequence_tokens": 16, "dtype": "uint16", "vocabulary": 300,
         "tokenizer_sha256": "d" * 64, **parts}
    )  # fmt: skip


def silo(world: World, name: str, **how: Any) -> FakeNode:
    """A node with text of its own that has enrolled; 20 and 6 sequences."""
    how.setdefault("text", (20, 6, name * 64))
    return FakeNode(world, name, **how).enrol()


def three_silos(world: World, **how: Any) -> list[FakeNode]:
    """All seats taken, in the order of their names."""
    return [silo(world, name, **how).join() for name in NAMES]


def work(world: World, nodes: list[FakeNode], until: str, turns: int = 200) -> None:
    """Let the nodes do what they are given until the run is in a phase."""
    for _ in range(turns):
        if world.coordinator.state.phase == until:
            return
        for node in nodes:
            node.look()
            if node.unit:
                node.done()
            elif node.question == 0 or node.question in world.answers:
                node.poll()
        world.advance(0.1)
    raise AssertionError(f"stuck in {world.coordinator.state.phase}")


def work_until(world: World, nodes: list[FakeNode], unit_id: str) -> None:
    """Until the node that it is for has this unit at hand."""
    for _ in range(200):
        for node in nodes:
            node.look()
            if node.unit and node.unit.unit_id == unit_id:
                return
            if node.unit:
                node.done()
            elif node.question == 0 or node.question in world.answers:
                node.poll()
            if node.unit and node.unit.unit_id == unit_id:
                return
    raise AssertionError(f"{unit_id} was not handed out")


def steps(journal: list[Event]) -> list[tuple[int, int]]:
    """The steps of which the prices moved, in their order."""
    return [(e.block, e.turn) for e in journal if isinstance(e, PricesMoved)]


def accepted(world: World) -> list[str]:
    """Units of which a result counted, in the order in which they came in."""
    return [event.unit_id for event in world.journal if isinstance(event, UnitAccepted)]


def gone_at(world: World) -> int:
    """How many results there were when the first expert left."""
    at = next(i for i, event in enumerate(world.journal) if isinstance(event, ExpertWithdrawn))
    return sum(isinstance(event, UnitAccepted) for event in world.journal[:at])


def about(unit_ids: list[str], seat: int, experts: tuple[int, ...]) -> list[str]:
    """Those that are of this seat or of these experts."""
    keys = [UnitKey.parse(unit_id) for unit_id in unit_ids]
    return [key.unit_id for key in keys if key.seat == seat or key.expert in experts]


def withdraw(world: World, node: FakeNode, *experts: int) -> None:
    """The owner of experts takes them out; all that are its, if none is named."""
    world.ask(msg.Withdraw(experts, node.node_id, True))
