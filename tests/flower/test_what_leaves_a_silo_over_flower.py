"""All that Flower carries away from a silo is declared, and none of it is the silo's text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from support.flower_grid import ThreadGrid, node_config
from support.flower_silos import PLANTED, SILOS, WEIGHTS, SiloStage, text_of
from support.leaks import Haystack, text_pieces, token_pieces
from tokenizers import Tokenizer

from smalltalk_fed.flower import arrival
from smalltalk_fed.flower.arrival import UNUSABLE_TEXT
from smalltalk_fed.flower.turns import Introduction, Order, Question, refused
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.egress import blob_kind, may_leave
from smalltalk_fed.wire.egress_record import Sent, Upload, undeclared, undeclared_upload

# docs/carriers.md, "What leaves a node": in each message's record `turn`.
DECLARED = {
    "query.join": {"join", "proof", "name", "missing"},
    "train": {"exchange", "missing", "refused"},
    "evaluate": {"exchange", "missing", "refused"},
    "query.end": {"exchange", "missing", "refused"},
}


def told(records: RecordDict, kind: str) -> Sent | None:
    """The native message in an answer."""
    turn = records.config_records["turn"]
    name, call = ("join", "Join") if kind == "query.join" else ("exchange", "Exchange")
    data = turn[name]
    assert isinstance(data, bytes)
    return Sent(0.0, call, data) if data else None


def answers(grid: ThreadGrid, seat: int) -> Iterator[tuple[str, RecordDict]]:
    node = list(grid.nodes)[seat]
    return ((kind, records) for n, kind, records in grid.received if n == node)


def bytes_of(grid: ThreadGrid, seat: int) -> Haystack:
    """Whatever Flower carried, as it carried it, and each array by itself."""
    places = {}
    for number, (kind, records) in enumerate(answers(grid, seat)):
        places[f"{kind} {number}"] = recorddict_to_proto(records).SerializeToString()
        for array in records.array_records.get("blobs", {}).values():
            places[f"{kind} {number} blob"] = array.data
    return Haystack(places)


def test_a_message_has_the_declared_fields_and_no_others(silo_messages: ThreadGrid) -> None:
    for _, kind, records in silo_messages.received:
        turn = records.config_records["turn"]
        assert set(records) <= {"turn", "blobs", "figures"}
        assert set(turn) <= DECLARED[kind]
        said = told(records, kind)
        assert said is None or undeclared(said) == ""


def test_blobs_are_outputs_that_are_declared_for_private_runs(
    silo_messages: ThreadGrid, silos: SiloStage
) -> None:
    left: dict[int, set[str]] = {seat: set() for seat in range(len(SILOS))}
    for seat in left:
        for kind, records in answers(silo_messages, seat):
            said = told(records, kind)
            outputs = {}
            if said is not None and said.call == "Exchange":
                done = pb.ExchangeRequest.FromString(said.data).finished
                outputs = {ref.digest.hex(): (ref, done.unit_id) for ref in done.outputs}
            for digest, array in records.array_records.get("blobs", {}).items():
                ref, unit_id = outputs[digest]
                whole = Upload(ref.name, unit_id, 0, ref.size, digest, bytearray(array.data))
                assert undeclared_upload(whole, silos.folder.manifest) == ""
                kind_of_it = blob_kind(ref.name)
                assert may_leave(silos.folder.manifest, kind_of_it, WEIGHTS[seat])
                left[seat].add(ref.name)
    assert left[0] - {"experts"} == {"router-0", "counts", "weights", "config"}
    assert left[1] - {"experts"} == {"router-1", "counts"}
    assert left[2] - {"experts"} == {"router-2", "router-3", "counts", "weights", "config"}


def test_flowers_metrics_are_the_figures_that_are_told_anyway(silo_messages: ThreadGrid) -> None:
    seen = 0
    for _, kind, records in silo_messages.received:
        for name, value in records.metric_records.get("figures", {}).items():
            said = told(records, kind)
            assert said is not None
            exchange = pb.ExchangeRequest.FromString(said.data)
            figures = (*exchange.finished.figures, *exchange.working.figures)
            assert (name, value) in {(figure.name, figure.value) for figure in figures}
            seen += 1
    assert seen > 10


def test_neither_the_planted_sentence_nor_its_tokens_left(
    silo_messages: ThreadGrid, silos: SiloStage
) -> None:
    file = silos.corpus.folder / "tokenizer" / "tokenizer.json"
    tokens = Tokenizer.from_file(str(file)).encode(" " + PLANTED).ids
    for seat, name in enumerate(SILOS):
        made = text_of(silos.path / name).folder
        shards = {shard.name: shard.read_bytes() for shard in made.glob("*-00000.bin")}
        assert Haystack(shards).find(token_pieces(tokens)), "the search misses what is there"
        left = bytes_of(silo_messages, seat)
        assert left.find(token_pieces(tokens)) == []
        assert left.find(text_pieces(PLANTED)) == []


def test_no_run_of_tokens_no_scores_and_no_digest_of_the_text_left(
    silo_messages: ThreadGrid, silos: SiloStage
) -> None:
    prefix = silos.folder.manifest.config.sequence.prefix
    for seat, name in enumerate(SILOS):
        text, left = text_of(silos.path / name), bytes_of(silo_messages, seat)
        rows = [*text.train.rows(np.arange(len(text.train))[::10]), *text.heldout.rows([0, 1])]
        pieces = set().union(*(token_pieces(row[:12].tolist()) for row in rows))
        assert left.find(pieces) == []
        assert left.score_like(-8.0 * prefix, -1.0 * prefix) == []
        assert left.find([text.digest.encode(), bytes.fromhex(text.digest)]) == []


def test_nothing_is_said_of_a_text_to_a_run_that_is_not_about_it(
    silo_messages: ThreadGrid, silos: SiloStage, tmp_path: Path
) -> None:
    """A silo's tokens, and a run on shared text that asks: not even a part of their digest."""
    from support.flower_runs import FlowerStage
    from support.tiny_run import write_tiny_corpus

    other = FlowerStage(tmp_path, write_tiny_corpus(tmp_path / "corpus"))
    made = text_of(silos.path / "a").folder
    nodes = {1: node_config(tmp_path, "a", made)}
    asked = ThreadGrid(nodes, {}, lambda node, kind, number: None)
    first = {n: records for n, kind, records in other.play().sent if kind == "query.join"}[101]
    answer = ask(asked, first)
    assert refused(answer) == UNUSABLE_TEXT
    digest = text_of(silos.path / "a").digest
    assert made_of(answer).find([digest[:12].encode(), digest.encode()]) == []


def test_words_of_errors_about_a_text_stay_in_the_silo(
    silo_messages: ThreadGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is foreseen, and of one that is not: Flower itself would send its words."""
    question = next(r for _, kind, r in silo_messages.sent if kind == "query.join" and blobs_of(r))
    text = tmp_path / "broken.jsonl"
    text.write_text('{"text": "the cobalt astrolabe\n')
    config = node_config(tmp_path, "a", text)
    config["public"] = next(iter(silo_messages.nodes.values()))["public"]
    first = ask(ThreadGrid({1: config}, {}), question)
    assert refused(first) == UNUSABLE_TEXT

    def broken(*arguments: object) -> None:
        raise KeyError("the cobalt astrolabe")

    monkeypatch.setattr(arrival, "open_silo", broken)
    second = ask(ThreadGrid({1: config}, {}), question)
    assert refused(second) == "KeyError; its words are in this node's log"
    for answer in (first, second):
        assert made_of(answer).find(text_pieces("the cobalt astrolabe")) == []


def test_nothing_is_told_before_the_tokenizer_is_there(
    silo_messages: ThreadGrid,
) -> None:
    first = next(records for _, kind, records in silo_messages.received if kind == "query.join")
    said = Introduction.from_records(first)
    assert (said.join, said.proof, len(said.missing)) == (b"", b"", 1)


def ask(grid: ThreadGrid, question: RecordDict) -> RecordDict:
    """What a node answers to one message of the kind query.join."""
    (message_id,) = grid.push_messages([Message(question, 1, "query.join")])
    grid.close()
    (reply,) = grid.pull_messages([message_id])
    return reply.content


def made_of(records: RecordDict) -> Haystack:
    return Haystack({"answer": recorddict_to_proto(records).SerializeToString()})


def blobs_of(records: RecordDict) -> bool:
    return bool(Question.from_records(records).blobs)


def test_inputs_of_private_units_are_routers_and_public_experts(silo_messages: ThreadGrid) -> None:
    """What comes down to a silo: nothing of another silo's text either."""
    for _, kind, records in silo_messages.sent:
        if kind in ("train", "evaluate"):
            reply = pb.ExchangeReply.FromString(Order.from_records(records).exchange)
            names = {blob_kind(ref.name) for ref in reply.unit.inputs}
            assert names <= {"router-N", "segment", "weights-2", "weights-3"}
