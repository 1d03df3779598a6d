"""Over Flower, too: work with the run's signature, results with the node's, blobs by digest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from flwr.app import RecordDict
from support.flower_runs import FlowerStage, events

from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.events import NodeEnrolled, UnitAccepted
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Refused, Unauthenticated
from smalltalk_fed.flower.node_turn import take_turn
from smalltalk_fed.flower.settings import NodeSettings
from smalltalk_fed.flower.turns import Order, Report
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb

QUIET = {"audit": {"rate": 0.0}, "run": {"lease_s": 2.0}}
Alter = Callable[[int, str, RecordDict], RecordDict]


@pytest.fixture
def stage(corpus: TokenCorpus, tmp_path: Path) -> FlowerStage:
    return FlowerStage(tmp_path, corpus, QUIET)


@pytest.fixture
def order(stage: FlowerStage) -> tuple[Order, NodeSettings]:
    """An order that was given in a run, and the node that got it."""
    grid = stage.play()
    node, _, records = next(sent for sent in grid.sent if sent[1] == "train")
    return Order.from_records(records), NodeSettings.of(grid.nodes[node], {})


def only(node: int, kind: str, change: Callable[[RecordDict], RecordDict]) -> Alter:
    return lambda n, k, records: change(records) if (n, k) == (node, kind) else records


def done_by(stage: FlowerStage) -> set[str]:
    named = {e.node_id: e.name for e in events(stage.folder) if isinstance(e, NodeEnrolled)}
    return {named[e.node_id] for e in events(stage.folder) if isinstance(e, UnitAccepted)}


def test_a_unit_for_somebody_else_is_not_done(
    order: tuple[Order, NodeSettings], tmp_path: Path
) -> None:
    given, settings = order
    with pytest.raises(Unauthenticated, match="the assignment of router_round"):
        take_turn(replace(settings, folder=tmp_path / "other"), given)


def test_a_unit_of_an_earlier_process_is_not_done(order: tuple[Order, NodeSettings]) -> None:
    given, settings = order
    with pytest.raises(Unauthenticated, match="the assignment of router_round"):
        take_turn(settings, replace(given, incarnation=given.incarnation + 1))


def test_a_run_whose_key_has_changed_is_refused(order: tuple[Order, NodeSettings]) -> None:
    given, settings = order
    path = settings.folder / "flower-runs.json"
    known = {run: seen | {"key": "00" * 32} for run, seen in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(known))
    with pytest.raises(Unauthenticated, match="another signing key"):
        take_turn(settings, given)


def test_a_node_without_the_key_that_it_names_takes_no_part(stage: FlowerStage) -> None:
    """It may have seen another node's presence; the challenge is new each time."""
    seen: list[tuple[int, RecordDict]] = []

    def change(node: int, kind: str, records: RecordDict) -> RecordDict:
        if kind != "query.join":
            return records
        seen.append((node, records))
        return seen[0][1]  # whoever comes later says what the first one said

    grid = stage.play(alter=change)
    honest = seen[0][0]
    assert {node for node, _ in seen} == {101, 102}
    assert {node for node, kind, _ in grid.sent if kind == "train"} == {honest}


def test_a_result_with_another_signature_does_not_count(stage: FlowerStage) -> None:
    def forge(records: RecordDict) -> RecordDict:
        report = Report.from_records(records)
        said = pb.ExchangeRequest.FromString(report.exchange)
        said.finished.signature = bytes(64)
        return replace(report, exchange=said.SerializeToString()).to_records()

    stage.play(alter=only(101, "train", forge))
    assert done_by(stage) <= {"b", "a"}
    shards = [e for e in events(stage.folder) if isinstance(e, UnitAccepted)]
    assert all("router_round" not in e.unit_id or e.node_id != _id(stage, "a") for e in shards)


def test_bytes_that_are_not_those_of_the_digest_do_not_count(stage: FlowerStage) -> None:
    def corrupt(records: RecordDict) -> RecordDict:
        report = Report.from_records(records)
        blobs = {digest: data + b"!" for digest, data in report.blobs.items()}
        return replace(report, blobs=blobs).to_records()

    stage.play(alter=only(101, "train", corrupt))
    assert all(
        event.node_id != _id(stage, "a") or not event.outputs
        for event in events(stage.folder)
        if isinstance(event, UnitAccepted)
    )


@pytest.mark.parametrize(
    ("name", "says"), [("audit", "has no output 'audit'"), ("parameters", "bytes; the run allows")]
)
def test_what_nobody_asked_for_or_is_too_large_is_not_kept(
    stage: FlowerStage,
    name: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody audits in this run, and `parameters` have a largest size."""
    limit = size_limit(stage.folder.manifest, "parameters")
    data = b"of no use" if name == "audit" else bytes(limit + 1)
    digest, put, kept = sha256(data), BlobStore.put, set()

    def noting(self: BlobStore, name: str, data: bytes) -> BlobRef:
        kept.add(sha256(data).hexdigest())
        return put(self, name, data)

    def smuggle(records: RecordDict) -> RecordDict:
        report = Report.from_records(records)
        said = pb.ExchangeRequest.FromString(report.exchange)
        outputs = said.finished.outputs
        ref = next((each for each in outputs if each.name == name), None) or outputs.add()
        ref.name, ref.digest, ref.size = name, digest.digest(), len(data)
        blobs = {**report.blobs, digest.hexdigest(): data}
        return replace(report, exchange=said.SerializeToString(), blobs=blobs).to_records()

    monkeypatch.setattr(BlobStore, "put", noting)
    grid = stage.play(alter=only(101, "train", smuggle))
    turns = [records for n, kind, records in grid.received if (n, kind) == (101, "train")]
    assert any(digest.hexdigest() in Report.from_records(records).blobs for records in turns)
    assert digest.hexdigest() not in kept
    assert kept
    assert says in capsys.readouterr().err
    assert done_by(stage) <= {"a", "b"}


def test_a_node_with_another_corpus_is_told_so(
    stage: FlowerStage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from support.tiny_run import write_tiny_corpus

    other = write_tiny_corpus(tmp_path / "other", seed=9)

    def swap(grid: object) -> None:
        grid.nodes[101]["corpus"] = str(other.folder)  # type: ignore[attr-defined]

    stage.play(on_grid=swap)
    assert done_by(stage) == {"b"}


def test_a_report_that_is_no_report_is_the_units_failure(stage: FlowerStage) -> None:
    stage.play(alter=only(101, "train", lambda records: RecordDict({})))
    assert "b" in done_by(stage)


def _id(stage: FlowerStage, name: str) -> str:
    return next(
        event.node_id
        for event in events(stage.folder)
        if isinstance(event, NodeEnrolled) and event.name == name
    )


def test_refusals_reach_the_log_in_one_sentence() -> None:
    from smalltalk_fed.flower.turns import refusal, refused

    assert refused(refusal("the corpus is another one")) == "the corpus is another one"
    assert "\n" not in refused(refusal("a\nb"))
    with pytest.raises(Refused):
        raise Refused(refused(refusal("no")))
