"""A node that is asked for its opinion on another node's result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.node_stage import Stage, ids
from support.tiny_run import HELDOUT

from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKey
from smalltalk_fed.errors import TooLarge
from smalltalk_fed.mixture.audit import decode_opinion, slice_places
from smalltalk_fed.mixture.idlists import decode_experts, encode_experts
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.mixture.verdict import expert_finding, router_finding, slice_finding
from smalltalk_fed.wire.signing import verify_result
from smalltalk_fed.worksite.folders import Workplace, forget_passed, unit_folder
from smalltalk_fed.worksite.unit_inputs import check_inputs

SAMPLE = 4242


def opinion_of(
    stage: Stage, unit_id: str, *, redo: bool = False, **inputs: bytes
) -> dict[str, np.ndarray]:
    """What the node says of the target of this audit; checks that it is signed."""
    unit = replace(stage.unit(unit_id, **inputs), sample=SAMPLE, redo=redo)
    said = stage.work(unit)
    assert said.finished is not None, said.failed
    assert [ref.name for ref in said.finished.outputs] == ["audit"]
    key = stage.folder.signing_key().public_bytes
    verify_result(key, "run-1", "n-1", said.incarnation, unit, said.finished)
    data = stage.loopback.blobs[said.finished.outputs[0].digest]
    return dict(decode_opinion(stage.manifest, UnitKey.parse(unit.key.target), data, redo))


def result_of(stage: Stage, unit_id: str, **inputs: bytes) -> dict[str, bytes]:
    done = stage.work(stage.unit(unit_id, **inputs)).finished
    assert isinstance(done, Result)
    return {ref.name: stage.loopback.blobs[ref.digest] for ref in done.outputs}


def test_rounds_are_audited_with_and_without_a_round_before(stage: Stage) -> None:
    first = result_of(stage, "router_round/0/1", share=ids())
    opinion = opinion_of(
        stage, "audit/1/router_round/0/1", parameters=first["parameters"], share=ids()
    )
    assert len(decode_scores(first["scores"])) == 40
    assert not router_finding(stage.manifest, opinion, None, {}).fault
    second = result_of(stage, "router_round/0/2", parameters=first["parameters"], share=ids(8))
    opinion = opinion_of(
        stage,
        "audit/2/router_round/0/2",
        before=first["parameters"],
        parameters=second["parameters"],
        share=ids(8),
    )
    assert "next" not in opinion  # the last round


def test_a_round_is_trained_again_where_the_unit_asks_for_it(stage: Stage) -> None:
    first = result_of(stage, "router_round/0/1", share=ids())["parameters"]
    other = result_of(stage, "router_round/0/1", share=ids(8))["parameters"]
    apart = []
    for parameters in (first, other):
        opinion = opinion_of(
            stage, "audit/1/router_round/0/1", redo=True, parameters=parameters, share=ids()
        )
        finding = router_finding(stage.manifest, opinion, None, {})
        apart.append(finding.figures["redo_apart"])
    assert apart[0] == 0
    assert apart[1] > 0.01


def test_divisions_are_audited(stage: Stage) -> None:
    routers = {
        f"router_{e}": result_of(stage, f"router_round/{e}/1", share=ids())["parameters"]
        for e in range(2)
    }
    for unit_id, count in (("shard/0", 32), ("shard/heldout", HELDOUT)):
        expert_N = decode_experts(result_of(stage, unit_id, **routers)["experts"], count, 2)
        opinion = opinion_of(stage, f"audit/1/{unit_id}", **routers)
        assert len(opinion["router_0"]) == stage.manifest.config.audit.sample_sequences
        target = UnitKey.parse(unit_id)
        places = slice_places(stage.manifest, target, SAMPLE)
        assert not slice_finding(stage.manifest, target, opinion, expert_N[places]).fault


def test_an_expert_is_audited_from_the_weights_that_were_collected(stage: Stage) -> None:
    routers = {
        f"router_{e}": result_of(stage, f"router_round/{e}/1", share=ids())["parameters"]
        for e in range(2)
    }
    expert = result_of(stage, "train_expert/1", segment=ids(40))
    routed = encode_experts(np.arange(HELDOUT) % 2, 2)
    opinion = opinion_of(
        stage,
        "audit/1/train_expert/1",
        config=expert["config"],
        weights=expert["weights"],
        segment=ids(40),
        routed=routed,
        **routers,
    )
    assert expert_finding(stage.manifest, opinion, {}).figures["loss_nats"] > 0


def test_an_input_that_is_missing_is_named(stage: Stage) -> None:
    unit = stage.unit("audit/1/router_round/0/1", share=ids())
    failed = stage.work(unit).failed
    assert failed is not None
    assert "without its input 'parameters'" in failed.reason


def test_the_parameters_before_have_the_limit_of_routers(stage: Stage) -> None:
    size = stage.manifest.router_blob_bytes_max + 1
    unit = Unit(UnitKey.parse("audit/1/router_round/0/2"), (BlobRef("before", "a" * 64, size),))
    with pytest.raises(TooLarge, match="input 'before'"):
        check_inputs(stage.manifest, unit)


def test_an_audit_does_not_cost_a_node_the_checkpoints_of_its_own_unit(stage: Stage) -> None:
    place = Workplace.inside(stage.folder, stage.manifest, stage.corpus, "cpu")
    mine = unit_folder(place, Unit(UnitKey.parse("router_round/0/2")))
    old = unit_folder(place, Unit(UnitKey.parse("router_round/1/1")))
    for folder in (mine, old):
        folder.mkdir(parents=True)
    forget_passed(place, Unit(UnitKey.parse("audit/1/router_round/1/2")))
    assert mine.exists()
    assert not old.exists()  # router 1's round before
