"""Three silos as processes, one with two experts: a whole private run, and all that left them.

Beside their own texts there is a public one, of which every expert trains on a share. A sentence
is planted in every silo's text. It must not be found in what left, nor must its tokens or any
scores, in any encoding. What came out is what the oracle computes on the same texts in one
process, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.deployment import command, good
from support.leaks import Haystack, text_pieces, token_pieces
from support.silo_deployment import SENTENCE, SILOS, SiloDeployment, silos
from tokenizers import Tokenizer

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.mixture.silo_prices import decode_counts
from smalltalk_fed.train.private_em import PrivateOracle, run_private_em
from smalltalk_fed.wire.egress_record import (
    Sent,
    Upload,
    read_record,
    undeclared,
    undeclared_upload,
    uploads,
)

pytestmark = pytest.mark.slow  # `host/test_a_private_run_in_one_process` is the quick one


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SiloDeployment:
    """A run of the past: seat 0 shares its expert with all, seat 1 with the operator."""
    with silos(tmp_path_factory.mktemp("silos")) as run:
        run.init()
        run.serve()
        for seat, (name, weights) in enumerate(zip(SILOS, ("public", "operator"), strict=False)):
            run.join(name)
            run.silo(name, seat, "--weights", weights)
        run.join("c")
        run.silo("c", 2)
        run.wait_phase("routing", "sharding", "training")
        run.kill("b")  # wherever it is: the run waits for it, and it has its seat again
        assert run.status()["phase"] != "finished"
        run.silo("b", 1, "--weights", "operator")
        run.wait_phase("finished")
        for name in SILOS:
            assert run.children.pop(name).wait(60) == 0, run.log(name)
    return run


@pytest.fixture(scope="module")
def manifest(run: SiloDeployment) -> RunManifest:
    return RunManifest.from_bytes((run.run / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def left(run: SiloDeployment) -> dict[str, list[Sent]]:
    return {name: list(read_record(run.folder / f"{name}.egress")) for name in SILOS}


@pytest.fixture(scope="module")
def uploaded(left: dict[str, list[Sent]]) -> dict[str, list[Upload]]:
    return {name: uploads(messages) for name, messages in left.items()}


@pytest.fixture(scope="module")
def mixture(run: SiloDeployment) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.run / "mixture" / "mixture.json").read_text())
    return found


@pytest.fixture(scope="module")
def oracle(run: SiloDeployment, manifest: RunManifest) -> PrivateOracle:
    return run_private_em(manifest, [run.text_of(name) for name in SILOS])


# -------------------------------------------------------------------------------- what came out


def test_routers_and_prices_are_those_of_the_oracle(
    run: SiloDeployment, mixture: dict[str, Any], oracle: PrivateOracle
) -> None:
    for expert, router in enumerate(mixture["routers"]):
        assert (run.run / "mixture" / router["file"]).read_bytes() == oracle.routers[expert]
    assert mixture["prices"] == oracle.prices_E.tolist()
    assert any(mixture["prices"])


def test_every_count_is_the_oracles_row(
    manifest: RunManifest, uploaded: dict[str, list[Upload]], oracle: PrivateOracle
) -> None:
    floor = manifest.config.private.count_floor
    seen = 0
    for seat, name in enumerate(SILOS):
        for upload in uploaded[name]:
            key = UnitKey.parse(upload.unit_id)
            if key.kind is not UnitKind.COUNT:
                continue
            row = decode_counts(bytes(upload.data), manifest.experts, floor)
            of = [e for e in oracle.exchanges if (e.block, e.index) == (key.index, key.turn)]
            assert np.array_equal(row, of[0].counts_KxE[seat])
            seen += 1
    assert seen >= 2 * len(SILOS)  # a row that was the same as one before needs no upload


def test_experts_are_there_where_their_owners_allow_it(
    run: SiloDeployment, mixture: dict[str, Any]
) -> None:
    shares = [expert["share"] for expert in mixture["experts"]]
    assert shares == ["public", "operator", "never", "never"]
    for index in (2, 3):
        assert not (run.run / "mixture" / "experts" / str(index)).exists()
        (kept,) = (run.folder / "c" / "experts").glob(f"*/{index}/model.safetensors")
        assert kept.stat().st_size > 1000


def test_every_expert_trained_on_its_silos_text_and_some_public_text(
    run: SiloDeployment, manifest: RunManifest, mixture: dict[str, Any]
) -> None:
    own = {0: "a", 1: "b", 2: "c", 3: "c"}
    parts = {"a": 1, "b": 1, "c": 2}
    public = 0
    for expert in mixture["experts"]:
        name = own[expert["index"]]
        silo = len(run.text_of(name).train) // parts[name]
        public += expert["sequences"] - silo
    assert public == manifest.train_sequences > 0


def test_status_shows_seats_counts_and_perplexity(run: SiloDeployment) -> None:
    status = run.status()
    assert [row["name"] for row in status["seats"]] == list(SILOS)
    assert [row["share"] for row in status["seats"]] == ["public", "operator", "never"]
    assert all(row["train_sequences"] >= 32 for row in status["seats"])
    assert [(move["block"], move["turn"]) for move in status["prices"]] == [(1, 0), (2, 0), (2, 1)]
    assert status["evaluation"]["suffix_ppl"] > 1
    assert [len(row) for row in status["counts"]] == [4, 4, 4]
    text = good("smalltalk-coordinator", "status", run.run)
    assert "would go to other silos" in text


def test_nothing_can_be_proved_of_text_that_never_came(run: SiloDeployment) -> None:
    done = command("smalltalk-coordinator", "status", run.run, "--audit-data")
    assert done.returncode == 2
    assert "stays on its nodes" in done.stderr


# ------------------------------------------------------------------------------------ what left


def test_only_what_is_declared_for_private_runs_left(
    manifest: RunManifest, left: dict[str, list[Sent]], uploaded: dict[str, list[Upload]]
) -> None:
    for name in SILOS:
        assert [problem for sent in left[name] if (problem := undeclared(sent))] == []
        wrong = [undeclared_upload(upload, manifest) for upload in uploaded[name]]
        assert [problem for problem in wrong if problem] == []
    names = {name: {upload.name for upload in found} for name, found in uploaded.items()}
    # Anybody may divide public text; of the same bytes, as of a config, one upload is enough.
    assert {"experts", "config"} <= set().union(*names.values())
    assert names["a"] - {"experts", "config"} == {"router-0", "counts", "weights"}
    assert names["c"] - {"experts"} == {"router-2", "router-3", "counts"}


def test_neither_the_planted_text_nor_its_tokens_left(
    run: SiloDeployment, left: dict[str, list[Sent]]
) -> None:
    tokenizer = Tokenizer.from_file(str(run.corpus / "tokenizer" / "tokenizer.json"))
    tokens = tokenizer.encode(" " + SENTENCE).ids
    for name in SILOS:
        shards = sorted(run.text_of(name).folder.glob("*-00000.bin"))  # it may be held out
        here = Haystack({shard.name: shard.read_bytes() for shard in shards})
        assert here.find(token_pieces(tokens)), "the search does not find what is there"
        found = Haystack.of(left[name])
        assert found.find(token_pieces(tokens)) == []
        assert found.find(text_pieces(SENTENCE)) == []


def test_no_run_of_tokens_of_any_sequence_left(
    run: SiloDeployment, left: dict[str, list[Sent]]
) -> None:
    for name in SILOS:
        text = run.text_of(name)
        pieces: set[bytes] = set()
        for split in (text.train, text.heldout):
            for row in split.rows(np.arange(0, len(split), 10)):
                pieces |= token_pieces(row[:12].tolist())
        assert Haystack.of(left[name]).find(pieces) == []


def test_no_scores_left(
    run: SiloDeployment, manifest: RunManifest, left: dict[str, list[Sent]]
) -> None:
    prefix = manifest.config.sequence.prefix
    for name in SILOS:
        assert Haystack.of(left[name]).score_like(-8.0 * prefix, -1.0 * prefix) == []


def test_what_is_said_of_a_text_cannot_be_guessed_by(
    run: SiloDeployment, left: dict[str, list[Sent]]
) -> None:
    for name in SILOS:
        digest = run.text_of(name).digest
        assert Haystack.of(left[name]).find([digest.encode(), bytes.fromhex(digest)]) == []


def test_the_owner_can_check_it(run: SiloDeployment) -> None:
    for name in SILOS:
        place = ("--dir", run.folder / name)
        record: Path = run.folder / f"{name}.egress"
        assert "All of it declared." in good("smalltalk-node", "egress", record, *place)
        found = command("smalltalk-node", "egress", record, *place, "--find", SENTENCE[:20])
        assert found.returncode == 0
    rows = {
        row["field"]: row["size"]
        for row in json.loads(
            good("smalltalk-node", "--explain-egress", "--dir", run.folder / "c", "--json")
        )
    }
    assert rows["data: scores"] == rows["data: weights"] == "never in this run"
    assert rows["data: counts"].startswith("at most")
