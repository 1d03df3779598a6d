"""A whole node in a private run, against a coordinator that plays a script."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from smalltalk_node import worker
from smalltalk_node.options import Options
from smalltalk_node.program import Program
from support.node_stage import STOP, Stage
from support.tiny_run import HELDOUT, LENGTH, SHAPE, TRAIN, VOCABULARY

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_private_manifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit
from smalltalk_fed.errors import DataError
from smalltalk_fed.mixture.silo_prices import WITHHELD, decode_counts
from smalltalk_fed.worksite.limits import Limits

FLOOR = 6  # no two multiples of it add up to HELDOUT: exact counts would be seen


def private_manifest(vocabulary: int = VOCABULARY) -> RunManifest:
    """Two seats with one expert each, over texts that `write_tiny_corpus` writes."""
    optimizer = {"learning_rate": 0.01, "clip": 1.0}
    table = {
        "run": {"experts": 2, "regime": "private", "poll_s": 1.0},
        "sequence": {"length": LENGTH, "prefix": 8},
        "router": {
            "model": SHAPE, "rounds": 2, "chunk_sequences": 40, "batch_sequences": 8,
            "optimizer": optimizer,
        },
        "expert": {"model": SHAPE, "steps": 4, "batch_sequences": 4, "optimizer": optimizer},
        "private": {"exchange_rounds": 2, "count_floor": FLOOR},
        "compute": {"threads": 1, "score_batch": 16},
    }  # fmt: skip
    tokenizer = hashlib.sha256(b"{}").hexdigest()
    return make_private_manifest(parse_config(table, "test"), tokenizer, vocabulary, "run-1", 0)


def run(stage: Stage, **how: object) -> None:
    limits = Limits.model_validate({"weights": how.pop("weights", "never")})
    options = Options(stage.corpus.folder, "cpu", 1, limits, **how)  # type: ignore[arg-type]
    Program(stage.folder, options).run()


def do(stage: Stage, unit: Unit) -> msg.Exchange:
    """One unit; what the node said when it was done with it."""

    def accept(question: msg.Exchange) -> msg.Order:
        return msg.Order("taken", accepted=unit.unit_id, stop=True)

    stage.script(msg.Order("do this", unit=unit), accept, manifest=private_manifest())
    run(stage)
    return stage.loopback.exchanges[-1]


def test_it_says_nothing_of_its_text_before_it_knows_what_the_run_is(stage: Stage) -> None:
    for _ in range(2):  # a later start asks again
        stage.script(STOP, manifest=private_manifest())
        run(stage, seat=1, weights="operator")
    for look in stage.loopback.looks:
        said = look.capabilities
        assert (said.corpus_digest, said.corpus_bytes) == ("", 0)
        assert (said.train_sequences, said.heldout_sequences) == (0, 0)
    assert (len(stage.loopback.looks), len(stage.loopback.joins)) == (2, 2)
    first, second = stage.loopback.joins
    assert (first.seat, first.share) == (1, "operator")
    said = first.capabilities
    assert (said.train_sequences, said.heldout_sequences) == (TRAIN, HELDOUT)
    assert said.corpus_digest == second.capabilities.corpus_digest
    assert said.corpus_digest != stage.corpus.digest
    assert said.corpus_bytes == 0


def test_a_text_of_another_tokenizer_takes_no_part(stage: Stage) -> None:
    stage.script(STOP, manifest=private_manifest(VOCABULARY + 1))
    with pytest.raises(DataError, match="another tokenizer"):
        run(stage)
    assert stage.loopback.joins == []


def test_a_block_and_a_count_hand_in_routers_and_a_rounded_row(stage: Stage) -> None:
    block = do(stage, stage.unit("silo_block/0/1")).finished
    assert block is not None
    assert [ref.name for ref in block.outputs] == ["router-0"]
    mine = stage.loopback.blobs[block.outputs[0].digest]
    other = do(stage, stage.unit("silo_block/1/1")).finished
    assert other is not None
    theirs = stage.loopback.blobs[other.outputs[0].digest]
    made = stage.unit("count/0/1/0", router_0=mine, router_1=theirs)
    counted = do(stage, Unit(made.key, made.inputs, prices=(0.0, 0.0))).finished
    assert counted is not None
    assert counted.figures == {}
    row = decode_counts(stage.loopback.blobs[counted.outputs[0].digest], 2, FLOOR)
    shown = row[row != WITHHELD]
    assert np.all(shown % FLOOR == 0)
    assert 0 < shown.sum() <= HELDOUT


def test_a_unit_without_its_prices_is_not_done(stage: Stage) -> None:
    router = do(stage, stage.unit("silo_block/0/1")).finished
    assert router is not None
    data = stage.loopback.blobs[router.outputs[0].digest]
    said = do(stage, stage.unit("count/0/1/0", router_0=data, router_1=data))
    assert said.failed is not None
    assert "came without a price for each expert" in said.failed.reason


def test_the_words_of_an_unexpected_error_stay_here(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("words of the text itself")

    monkeypatch.setattr(worker, "do_unit", broken)
    said = do(stage, stage.unit("silo_block/0/1"))
    assert said.failed is not None
    assert said.failed.reason == "KeyError; its words are in this node's log"
