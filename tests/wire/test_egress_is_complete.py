"""What can leave a node is listed, whole, from the messages themselves."""

from __future__ import annotations

import pytest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.core.catalogue import outputs_of
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import OurError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import egress
from smalltalk_fed.wire.egress import BLOBS, CALLS, DESCRIPTIONS, blob_kind, egress_rows


def manifest_of(**sections: object) -> RunManifest:
    return RunManifest(
        run_id="r", created_unix_s=0, config=RunConfig.model_validate(sections),
        corpus_digest="0" * 64, tokenizer_sha256="0" * 64, vocabulary=1000,
        train_sequences=100_000, heldout_sequences=100,
    )  # fmt: skip


def test_every_call_that_a_node_can_make_is_listed() -> None:
    services = pb.DESCRIPTOR.services_by_name
    methods = {
        m.name: m.input_type for name in ("Enrolment", "Run") for m in services[name].methods
    }
    assert {call: descriptor for call, _, descriptor in CALLS} == methods


def test_every_field_of_every_request_is_described_and_none_besides() -> None:
    described, left = set(), [descriptor for *_, descriptor in CALLS]
    while left:
        descriptor = left.pop()
        for field in descriptor.fields:
            described.add((descriptor.name, field.name))
            if field.message_type is not None:
                left.append(field.message_type)
    assert set(DESCRIPTIONS) == described
    fields = [row.field for row in egress_rows() if row.call == "Join"]
    assert fields[:3] == ["incarnation", "protocol_version", "signing_key"]
    assert "capabilities.corpus_digest" in fields
    assert "finished.outputs[].digest" in [row.field for row in egress_rows()]


def test_a_field_without_a_description_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {key: said for key, said in DESCRIPTIONS.items() if key[1] != "software"}
    monkeypatch.setattr(egress, "DESCRIPTIONS", fewer)
    with pytest.raises(OurError, match="software"):
        egress_rows()


def test_every_output_of_every_kind_of_unit_is_described() -> None:
    state = Coordinator(manifest_of(), 0.0).state
    names = {
        blob_kind(name)
        for kind in UnitKind
        for index in (0, 1, state.rounds_total)
        for name in outputs_of(state.manifest, UnitKey(kind, 0, index, seat=0))
    }
    assert names == set(BLOBS)


def test_nothing_is_without_words() -> None:
    for row in egress_rows(manifest_of()):
        assert row.what
        assert row.when
        assert row.size


def sizes(manifest: RunManifest) -> dict[str, str]:
    return {
        row.field.removeprefix("data: "): row.size
        for row in egress_rows(manifest)
        if row.field.startswith("data: ")
    }


def test_sizes_are_those_that_the_run_allows() -> None:
    manifest = manifest_of(run={"experts": 2}, router={"chunk_sequences": 1000})
    assert sizes(manifest)["scores"] == "at most 2,064 bytes in this run"
    assert f"{manifest.expert_blob_bytes_max:,}" in sizes(manifest)["weights"]


@pytest.mark.parametrize(("init", "weights"), [("fresh", "never in this run"), ("seed", "at most")])
def test_a_run_that_does_not_collect_says_that_weights_stay(init: str, weights: str) -> None:
    said = sizes(manifest_of(expert={"collect": "never", "init": init}))
    assert weights in said["weights"]
    assert said["config"] == "never in this run"


PRIVATE = {"run": {"regime": "private"}}


def test_a_private_run_says_that_scores_and_lists_stay_and_counts_leave() -> None:
    said = sizes(manifest_of(**PRIVATE))
    for name in ("parameters", "scores", "audit"):
        assert said[name] == "never in this run"
    assert said["experts"].startswith("at most")  # of the run's public text
    assert said["counts"] == "at most 80 bytes in this run"
    assert said["router-N"].startswith("at most")
    shared = sizes(manifest_of())
    assert shared["counts"] == shared["router-N"] == "never in this run"


@pytest.mark.parametrize(
    ("asked", "said", "leaves"),
    [("public", "never", False), ("never", "public", False), ("operator", "public", True)],
)
def test_weights_leave_a_silo_only_if_run_and_owner_agree(
    asked: str, said: str, leaves: bool
) -> None:
    manifest = manifest_of(**PRIVATE, expert={"share": asked})
    found = {r.field: r.size for r in egress_rows(manifest, said)}
    for name in ("data: weights", "data: config"):
        assert (found[name] != "never in this run") == leaves
