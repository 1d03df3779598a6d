"""Silos under noise as processes: one refuses the cost, one is killed between; the run ends."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.deployment import command, wait_for
from support.leaks import Haystack, text_pieces, token_pieces
from support.silo_deployment import SENTENCE, SILOS, SiloDeployment, silos
from tokenizers import Tokenizer

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.mixture.package import read_mixture
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.train.silo_counts import silo_cost
from smalltalk_fed.wire.convert import exchange_from_proto
from smalltalk_fed.wire.egress_record import read_record, undeclared, uploads

pytestmark = pytest.mark.slow  # `host/test_a_private_run_under_noise_ends` is the quick one
SETTINGS = {
    "run.experts": 3,
    "private.experts_of": [1, 1, 1],
    "privacy.router_noise": 1.0,
    "privacy.count_noise": 3.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SiloDeployment:
    """A run of the past."""
    with silos(tmp_path_factory.mktemp("silos"), **SETTINGS) as run:
        run.init()
        run.serve()
        for seat, name in enumerate(SILOS):
            run.join(name)
            if name == "b":
                _refuses_the_cost(run, name, seat)
            run.silo(name, seat, "--epsilon-at-most", 1000)
        _killed_between_answer_and_receipt(run, "b", 1)
        run.wait_phase("finished")
        for name in SILOS:
            assert run.children.pop(name).wait(60) == 0, run.log(name)
    return run


def _killed_between_answer_and_receipt(run: SiloDeployment, name: str, seat: int) -> None:
    """The coordinator stands still meanwhile, so that it asks for the same again."""
    wait_for(lambda: f"unit=silo_block/{seat}/1" in run.log(name), "the first block's beginning")
    coordinator = run.children["coordinator"]
    coordinator.send_signal(signal.SIGSTOP)
    wait_for(lambda: ledger_of(run, name), "an answer in the silo's ledger")
    run.kill(name)
    coordinator.send_signal(signal.SIGCONT)
    run.silo(name, seat)


def ledger_of(run: SiloDeployment, name: str) -> list[dict[str, Any]]:
    """What the silo wrote down of its answers, in their order."""
    paths = list((run.folder / name / "work").glob("*/given/ledger.json"))
    return json.loads(paths[0].read_text())["releases"] if paths else []


def _refuses_the_cost(run: SiloDeployment, name: str, seat: int) -> None:
    done = command(
        "smalltalk-node", "run", "--dir", run.folder / name, "--seat", seat, "--threads", 1,
        "--corpus", run.folder / f"{name}.jsonl", "--public", run.corpus,
        "--epsilon-at-most", 0.01,
    )  # fmt: skip
    assert done.returncode == 2
    assert "an epsilon of" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_mixture_has_a_router_and_a_price_of_every_silo(run: SiloDeployment) -> None:
    mixture = read_mixture(run.run / "mixture", elsewhere=True)
    assert len(mixture.prices) == len(SILOS)
    assert run.status()["evaluation"]["suffix_ppl"] > 1


@pytest.mark.parametrize("name", SILOS)
def test_every_question_got_one_answer(run: SiloDeployment, name: str) -> None:
    """Noise drawn twice for the same question could be averaged away."""
    answers = ledger_of(run, name)
    units = [answer["unit"] for answer in answers]
    kinds = {UnitKey.parse(unit_id).kind for unit_id in units}
    assert kinds == {UnitKind.SILO_BLOCK, UnitKind.COUNT}
    assert len(set(units)) == len(units)
    given = {digest for answer in answers for digest in answer["outputs"].values()}
    left: dict[tuple[str, str], set[str]] = {}
    for upload in uploads(read_record(run.folder / f"{name}.egress")):
        left.setdefault((upload.unit_id, upload.name), set()).add(upload.digest)
        if UnitKey.parse(upload.unit_id).kind is UnitKind.SILO_BLOCK:
            assert upload.digest in given
    assert all(len(digests) == 1 for digests in left.values())
    assert left


def test_who_was_killed_before_its_answer_was_heard_was_asked_again(run: SiloDeployment) -> None:
    begun = re.findall(r" work +unit=(silo_block/\S+|count/\S+)", run.log("b"))
    assert len(begun) == len(set(begun)) + 1


@pytest.mark.parametrize("name", SILOS)
def test_what_a_silo_says_it_spent_ends_at_what_its_owner_was_told(
    run: SiloDeployment, name: str
) -> None:
    manifest = RunManifest.from_bytes((run.run / "manifest.json").read_bytes())
    text = run.text_of(name)
    routers, counts = silo_cost(manifest, len(text.train), len(text.heldout))
    spent: dict[UnitKind, list[float]] = {UnitKind.SILO_BLOCK: [], UnitKind.COUNT: []}
    for sent in read_record(run.folder / f"{name}.egress"):
        if sent.call == "Exchange":
            result = exchange_from_proto(name, pb.ExchangeRequest.FromString(sent.data)).finished
            if result and UnitKey.parse(result.unit_id).kind in spent:
                kind = UnitKey.parse(result.unit_id).kind
                spent[kind].append(result.figures["epsilon"])
    assert spent[UnitKind.SILO_BLOCK] == sorted(spent[UnitKind.SILO_BLOCK])
    assert max(spent[UnitKind.SILO_BLOCK]) == routers.epsilon > 0
    assert max(spent[UnitKind.COUNT]) == counts.epsilon > 0


@pytest.mark.parametrize("name", SILOS)
def test_nothing_undeclared_and_none_of_the_text_left(run: SiloDeployment, name: str) -> None:
    record: Path = run.folder / f"{name}.egress"
    left = list(read_record(record))
    assert [problem for sent in left if (problem := undeclared(sent))] == []
    tokenizer = Tokenizer.from_file(str(run.corpus / "tokenizer" / "tokenizer.json"))
    found = Haystack.of(left)
    assert found.find(token_pieces(tokenizer.encode(" " + SENTENCE).ids)) == []
    assert found.find(text_pieces(SENTENCE)) == []
