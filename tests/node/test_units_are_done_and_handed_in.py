"""Each kind of unit on a whole node: what comes up, what is kept, what need not travel again."""

from __future__ import annotations

import json

import numpy as np
from support.node_stage import Stage, ids
from support.tiny_run import HELDOUT, tiny_manifest

from smalltalk_fed.core.units import BlobRef, Unit, UnitKey
from smalltalk_fed.mixture.idlists import decode_experts, encode_experts
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.wire.signing import verify_result
from smalltalk_fed.wire.tensors import check_weights, expected_llama_tensors


def test_a_router_round_is_done_signed_and_handed_in(stage: Stage) -> None:
    unit = stage.unit("router_round/1/1", share=ids())
    said = stage.work(unit)
    result = said.finished
    assert result is not None
    assert [ref.name for ref in result.outputs] == ["parameters", "scores"]
    parameters, scores = (stage.loopback.blobs[ref.digest] for ref in result.outputs)
    shape = stage.manifest.config.router.model
    check_weights(parameters, expected_llama_tensors(shape, stage.manifest.vocabulary))
    assert len(decode_scores(scores, 40)) == 40
    key = stage.folder.signing_key().public_bytes
    verify_result(key, "run-1", "n-1", said.incarnation, unit, result)
    assert result.figures["steps"] == 2
    assert stage.loopback.joins[0].signing_key == key
    assert stage.loopback.joins[0].capabilities.corpus_digest == stage.corpus.digest
    assert stage.loopback.looks[0].incarnation == stage.loopback.joins[0].incarnation


def test_a_node_that_is_told_to_slow_down_waits_and_its_unit_is_done(stage: Stage) -> None:
    methods = ("Join", "Exchange", "BlobState", "PutBlob", "GetBlob")
    stage.loopback.behaviour.slow_down = dict.fromkeys(methods, 2)
    said = stage.work(stage.unit("router_round/1/1", share=ids()))
    assert said.finished is not None
    assert not any(stage.loopback.behaviour.slow_down.values())
    assert [bool(each.failed) for each in stage.loopback.exchanges] == [False, False]


def test_a_router_that_is_at_hand_does_not_travel_down(stage: Stage) -> None:
    first = stage.work(stage.unit("router_round/0/1", share=ids())).finished
    assert first is not None
    parameters = first.outputs[0]
    unit = Unit(
        UnitKey.parse("router_round/0/2"),
        (parameters, stage.loopback.put("share", ids(8))),
    )
    second = stage.work(unit).finished
    assert second is not None
    assert [ref.name for ref in second.outputs] == ["parameters"]  # the last round scores nothing
    rows = [row for row in stage.loopback.ledger.table() if row.kind == "parameters"]
    assert {row.direction: row.messages for row in rows} == {"up": 2, "down": 2}  # replies only
    assert stage.loopback.blobs.keys() >= {parameters.digest}


def test_slices_are_divided_and_held_out_text_is_routed(stage: Stage) -> None:
    routers = {}
    for expert in range(2):
        done = stage.work(stage.unit(f"router_round/{expert}/1", share=ids())).finished
        assert done is not None
        routers[f"router_{expert}"] = stage.loopback.blobs[done.outputs[0].digest]
    for unit_id, count in (("shard/1", 32), ("shard/heldout", HELDOUT)):
        done = stage.work(stage.unit(unit_id, **routers)).finished
        assert done is not None
        assert [ref.name for ref in done.outputs] == ["experts"]
        expert_N = decode_experts(stage.loopback.blobs[done.outputs[0].digest], count, 2)
        if unit_id == "shard/1":
            assert np.bincount(expert_N).tolist() == [16, 16]


def test_an_expert_is_trained_kept_and_evaluated_without_travelling_back(stage: Stage) -> None:
    done = stage.work(stage.unit("train_expert/1", segment=ids(40))).finished
    assert done is not None
    assert [ref.name for ref in done.outputs] == ["config", "weights"]
    kept = stage.folder.path / "experts" / "run-1" / "1"
    weights = stage.loopback.blobs[done.outputs[1].digest]
    assert (kept / "model.safetensors").read_bytes() == weights
    assert json.loads((kept / "config.json").read_bytes())["vocab_size"] == 32
    assert not (stage.folder.path / "work" / "run-1" / "train_expert-1").exists()
    before = stage.loopback.ledger.by_kind()["weights"]["down"]
    routed = stage.loopback.put("routed", encode_experts(np.arange(HELDOUT) % 2, 2))
    evaluated = stage.work(Unit(UnitKey.parse("evaluate/1"), (routed, *done.outputs))).finished
    assert evaluated is not None
    assert evaluated.outputs == ()
    assert evaluated.figures["sequences"] == HELDOUT / 2
    assert stage.loopback.ledger.by_kind()["weights"]["down"] == before


def test_an_expert_that_is_not_collected_stays(stage: Stage) -> None:
    stage.manifest = tiny_manifest(stage.corpus, expert={"collect": "never"})
    done = stage.work(stage.unit("train_expert/0", segment=ids(40))).finished
    assert done is not None
    assert done.outputs == ()
    assert stage.loopback.uploads == []
    routed = encode_experts(np.zeros(HELDOUT, dtype=int), 2)
    evaluated = stage.work(stage.unit("evaluate/0", routed=routed)).finished
    assert evaluated is not None
    assert evaluated.figures["suffix_nll"] > 0
    missing = stage.work(stage.unit("evaluate/1", routed=routed)).failed
    assert missing is not None
    assert "does not have the weights of expert 1" in missing.reason


def test_a_seed_model_goes_up_once_and_experts_start_from_it(stage: Stage) -> None:
    stage.manifest = tiny_manifest(stage.corpus, expert={"init": "seed"})
    seed = stage.work(stage.unit("train_seed")).finished
    assert seed is not None
    ref = seed.outputs[0]
    inputs = (stage.loopback.put("segment", ids(40)), BlobRef("seed", ref.digest, ref.size))
    done = stage.work(Unit(UnitKey.parse("train_expert/0"), inputs)).finished
    assert done is not None
    kinds = stage.loopback.ledger.by_kind()
    assert kinds["seed"]["up"] > ref.size
    assert kinds["seed"]["down"] < 100  # the trainer of the seed has it at hand
