"""Experts that leave a private run in its middle: real units, real signatures, a real mixture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.silo_run import Silo, make_folder, run_silos, tiny_texts

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.units import Result, Unit, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Refused
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.handed_in import check_signature
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.package import MixtureManifest, present_experts, read_mixture
from smalltalk_fed.train.private_em import run_private_em

GONE = (1, 3)  # a silo with one expert, and one of another silo's two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_folder(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[TokenCorpus]:
    return tiny_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def silos(folder: RunFolder, texts: list[TokenCorpus]) -> list[Silo]:
    """Seat 1 leaves when it has counted after block 1; expert 3 when block 2 is under way."""

    async def between(silo: Silo, unit: Unit, result: Result) -> str:
        ask, node_id, state = silo.host.ask, silo.node_id, silo.host.coordinator.state
        if unit.unit_id == "count/1/1/0":
            await ask(msg.Withdraw((), node_id, True, "ours again"))
            return "stop"  # and is never heard of again
        if unit.unit_id == "silo_block/2/2" and 3 not in state.withdrawn:
            await ask(msg.Withdraw((3,), node_id, True))
            with pytest.raises(Refused, match="since an expert left the run; it is asked for anew"):
                check_signature(state, msg.Exchange(node_id, 1, finished=result), result)
            return "drop"
        return ""

    return run_silos(folder, texts, between)


@pytest.fixture(scope="module")
def mixture(folder: RunFolder, silos: list[Silo]) -> MixtureManifest:
    return read_mixture(folder.mixture)


def journaled(folder: RunFolder) -> list[ev.Event]:
    journal = Journal(folder.journal, create=False)
    try:
        return list(journal.events())
    finally:
        journal.close()


def test_the_mixture_is_of_those_who_stayed(folder: RunFolder, mixture: MixtureManifest) -> None:
    assert [bool(expert.withdrawn) for expert in mixture.experts] == [False, True, False, True]
    assert mixture.experts[1].withdrawn == "ours again"
    assert present_experts(folder.mixture, mixture) == [0, 2]
    assert [bool(router.sha256) for router in mixture.routers] == [True, False, True, False]
    there = {path.name for path in (folder.mixture / "routers").iterdir()}
    assert there == {"0.safetensors", "2.safetensors"}


def test_the_router_of_a_silo_that_stayed_is_what_it_would_have_been(
    folder: RunFolder, texts: list[TokenCorpus], mixture: MixtureManifest
) -> None:
    oracle = run_private_em(folder.manifest, texts)
    path = folder.mixture / mixture.routers[0].file
    assert path.read_bytes() == oracle.routers[0]


def test_a_silo_goes_on_with_the_expert_that_it_has_left(
    folder: RunFolder, silos: list[Silo], mixture: MixtureManifest
) -> None:
    blocks = [(unit, done) for unit, done in silos[2].handed_in
              if unit.key.kind is UnitKind.SILO_BLOCK]  # fmt: skip
    assert [list(done.outputs) for _, done in blocks] == [
        ["router-2", "router-3"], ["router-2", "router-3"], ["router-2"],
    ]  # fmt: skip
    assert blocks[-1][0].withdrawn == (3,)
    assert mixture.experts[2].sequences == len(silos[2].place.corpus.train)
    trained = [unit.unit_id for unit, _ in silos[2].handed_in
               if unit.key.kind is UnitKind.TRAIN_EXPERT]  # fmt: skip
    assert trained == ["train_expert/2"]


def test_prices_of_who_left_stay_and_the_others_move(
    folder: RunFolder, mixture: MixtureManifest
) -> None:
    moves = [event.prices for event in journaled(folder) if isinstance(event, silo_ev.PricesMoved)]
    assert [move[1] for move in moves] == [0.0] * len(moves)
    assert moves[-1] == mixture.prices
    assert any(mixture.prices)
    heldout = mixture.metrics["heldout"]
    assert heldout["suffix_ppl"] > 1
    assert heldout["silos"][1] == {}
    assert [seat["withdrawn"] for seat in mixture.metrics["seats"]] == [[], [1], [3]]


def test_nothing_of_them_is_kept(folder: RunFolder, silos: list[Silo], tmp_path: Path) -> None:
    gone = [event for event in journaled(folder) if isinstance(event, silo_ev.ExpertWithdrawn)]
    assert sorted(event.expert for event in gone) == list(GONE)
    blobs = BlobStore(folder.blobs)
    digests = [digest for event in gone for digest in event.blobs]
    assert len(digests) >= 2
    assert not [digest for digest in digests if blobs.has(digest)]
    assert "router-3" not in json.dumps([list(done.outputs) for _, done in silos[2].handed_in[-4:]])
