"""A whole private run through the core, the host and the nodes' own units, in one process.

Random text, models that train in milliseconds: what comes out is the oracle's, byte for byte.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.leaks import Haystack, token_pieces
from support.silo_run import WEIGHTS, Silo, make_folder, run_silos, tiny_texts

from smalltalk_fed.core.units import UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.mixture.package import MixtureManifest, present_experts, read_mixture
from smalltalk_fed.train.private_em import run_private_em
from smalltalk_fed.wire.egress import blob_kind, figure_is_declared, may_leave


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_folder(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[TokenCorpus]:
    return tiny_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def silos(folder: RunFolder, texts: list[TokenCorpus]) -> list[Silo]:
    """The silos of a run that was taken to its end."""
    return run_silos(folder, texts)


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


def test_a_silos_text_is_evaluated_by_its_own_experts_and_public_ones_alone(
    silos: list[Silo],
) -> None:
    """Others' weights stay where they are: what they would win is `elsewhere`."""
    for silo in silos:
        (unit, done) = next(
            each for each in silo.handed_in if each[0].key.kind is UnitKind.EVALUATE_SILO
        )
        lent = {ref.name for ref in unit.inputs if ref.name.startswith("weights-")}
        assert lent == (set() if silo.seat == 2 else {"weights-2", "weights-3"})
        here = done.figures.get("sequences", 0)
        assert here + done.figures["elsewhere"] == len(silo.place.corpus.heldout)


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
