"""Weights as bytes: one content, one byte string, and nothing unchecked comes in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.errors import Malformed, WorldError
from smalltalk_fed.model.build import build_model
from smalltalk_fed.model.state import (
    named_weights,
    state_from_bytes,
    state_from_file,
    state_to_bytes,
    state_to_file,
)
from smalltalk_fed.wire.tensors import check_weights, expected_llama_tensors

SHAPE = ModelShape(hidden=16, layers=2, heads=2, feed_forward=32)


def _model(key=b"key"):
    return build_model(SHAPE, 64, 32, key)


def test_bytes_bring_the_same_weights_to_another_model():
    source, target = _model(), _model(b"other")
    state_from_bytes(target, state_to_bytes(source))
    for (name, a), (_, b) in zip(
        named_weights(source).items(), named_weights(target).items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert state_to_bytes(target) == state_to_bytes(source)
    assert target.lm_head.weight is target.model.embed_tokens.weight


def test_the_tied_embedding_is_written_once_and_the_coordinator_accepts_the_names():
    data = state_to_bytes(_model())
    assert "lm_head.weight" not in load(data)
    check_weights(data, expected_llama_tensors(SHAPE, 64))


def test_weights_of_another_precision_are_written_in_fp32():
    assert all(w.dtype == torch.float32 for w in load(state_to_bytes(_model().bfloat16())).values())


def test_a_file_holds_what_the_bytes_hold(tmp_path):
    source, target = _model(), _model(b"other")
    state_to_file(source, tmp_path / "deep" / "weights.safetensors")
    assert (tmp_path / "deep" / "weights.safetensors").read_bytes() == state_to_bytes(source)
    state_from_file(target, tmp_path / "deep" / "weights.safetensors")
    assert state_to_bytes(target) == state_to_bytes(source)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["weights.safetensors"]


def _changed(change):
    weights = load(state_to_bytes(_model()))
    change(weights)
    return save(weights)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' does not belong"),
        (lambda w: w.update({"model.norm.weight": torch.ones(17)}), r"\[17\]"),
        (lambda w: w.update({"model.norm.weight": torch.ones(16).half()}), "float16"),
        (lambda w: w.update({"model.norm.weight": torch.full((16,), torch.nan)}), "NaN"),
    ],
)
def test_weights_of_another_model_are_refused_and_nothing_changes(change, reason, tmp_path):
    target = _model(b"other")
    before = state_to_bytes(target)
    data = _changed(change)
    with pytest.raises(Malformed, match=reason):
        state_from_bytes(target, data)
    assert state_to_bytes(target) == before
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(Malformed, match=reason):
        state_from_file(target, tmp_path / "w")


@given(st.binary(max_size=200) | st.integers(0, 5000).map(lambda n: state_to_bytes(_model())[:n]))
@settings(max_examples=30, deadline=None)
def test_bytes_that_are_no_weights_are_malformed(data):
    with pytest.raises(Malformed):
        state_from_bytes(_model(), data)


def test_a_file_that_is_missing_is_malformed_and_one_that_cannot_be_written_the_worlds_fault(
    tmp_path,
):
    with pytest.raises(Malformed, match="can't be read"):
        state_from_file(_model(), tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldError, match="can't be written"):
        state_to_file(_model(), tmp_path / "file" / "weights")
