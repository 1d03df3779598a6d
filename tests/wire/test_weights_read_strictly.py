"""Weights from strangers: the header is checked before a number is touched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from smalltalk_fed.config.shapes import PRESETS, ModelShape
from smalltalk_fed.errors import Malformed, PeerError, TooLarge, WorldError
from smalltalk_fed.wire import tensors
from smalltalk_fed.wire.tensors import (
    check_finite,
    check_weights,
    expected_llama_tensors,
    read_header,
)

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def built(table: object, data: bytes = b"") -> bytes:
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_header_of_a_file_of_the_library(tmp_path: Path) -> None:
    data = save({"b": A, "a": A.astype(np.float16)}, metadata={"format": "pt"})
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    header = read_header(data)
    assert header == read_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.tensors["b"].shape == (2, 3)
    found = header.tensors["b"]
    assert np.frombuffer(data[found.start : found.end], "<f4").tolist() == A.ravel().tolist()


A_ENTRY = json.dumps(entry()).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (1 << 60).to_bytes(8, "little") + b"{}",
        built(b"not json"),
        built(b"\xff\xfe"),
        built([]),
        built(b'{"a": 1, "a": 2}'),
        built((b'{"a": %b, "a": %b}' % (A_ENTRY, A_ENTRY)), b"1234"),
        built(b"[" * 5000),
        built({"a": entry()}),  # no data
        built({"a": entry()}, b"12345"),  # a byte too many
        built({"a": entry(offsets=(4, 8))}, b"1234" * 2),  # a gap
        built({"a": entry(), "b": entry()}, b"1234"),  # an overlap
        built({"a": entry(shape=(2,))}, b"1234"),
        built({"a": entry(shape=(-1,))}, b"1234"),
        built({"a": entry(shape=(True,))}, b"1234"),
        built({"a": entry(shape=(2**63, 2**63))}, b"1234"),
        built({"a": entry(shape=[1] * 9)}, b"1234"),
        built({"a": entry(dtype="PICKLE")}, b"1234"),
        built({"a": entry(dtype=["F32"])}, b"1234"),
        built({"a": entry(offsets=(0,))}, b"1234"),
        built({"a": {**entry(), "more": 1}}, b"1234"),
        built({"__metadata__": {"x": 1}}),
    ],
)
def test_contradictions_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_header(data)


def test_header_over_the_limit_is_not_even_read() -> None:
    data = save({"a": A})
    with pytest.raises(TooLarge):
        read_header(data, limit=16)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_do_worse_than_a_peer_error(rest: bytes) -> None:
    for data in (rest, built(rest)):
        try:
            check_finite(data)
        except PeerError:
            continue


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_found_wherever_it_is(
    dtype: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "CHUNK_BYTES", 64)
    for position in (0, 50, 99):
        values = np.ones(100, dtype=np.float32)
        values[position] = bad
        numpy_type = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
        if dtype == "BF16":
            raw = (values.view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype(numpy_type[dtype]).tobytes()
        data = built({"w": entry(dtype, [100], [0, len(raw)])}, raw)
        with pytest.raises(Malformed, match="'w' has a NaN"):
            check_finite(data)


def test_finite_numbers_and_integers_pass() -> None:
    check_finite(save({"a": A, "i": np.array([-1, 2**31 - 1], dtype=np.int32)}))
    largest = np.array([3.3895314e38, -1e-40], dtype=np.float32)
    raw = (largest.view("<u4") >> 16).astype("<u2").tobytes()
    check_finite(built({"w": entry("BF16", [2], [0, 4])}, raw))


def test_missing_file_is_the_worlds_fault(tmp_path: Path) -> None:
    with pytest.raises(WorldError):
        read_header(tmp_path / "nothing")


@pytest.mark.parametrize("preset", ["router-mini", "mini", "router-4.4m"])
def test_parameters_of_the_expected_tensors_are_the_shapes_own_count(preset: str) -> None:
    shape = PRESETS[preset]
    expected = expected_llama_tensors(shape, 1024)
    assert sum(int(np.prod(size)) for size in expected.values()) == shape.parameters(1024)


def test_expected_tensors_are_those_of_transformers() -> None:
    import transformers

    shape = ModelShape(hidden=16, layers=2, heads=2, feed_forward=24)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )
    names = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert expected_llama_tensors(shape, 40) == names


def test_whole_check_names_what_is_wrong() -> None:
    shape = ModelShape(hidden=8, layers=1, heads=2, feed_forward=8)
    expected = expected_llama_tensors(shape, 16)
    good = {name: np.zeros(size, dtype=np.float32) for name, size in expected.items()}
    check_weights(save(good), expected)
    norm = "model.norm.weight"
    with pytest.raises(Malformed, match=r"norm\.weight' is missing"):
        check_weights(save({n: v for n, v in good.items() if n != norm}), expected)
    with pytest.raises(Malformed, match="does not belong"):
        check_weights(save({**good, "z": good[norm]}), expected)
    with pytest.raises(Malformed, match=r"is F16 \[8\]"):
        check_weights(save({**good, norm: good[norm].astype(np.float16)}), expected)
    with pytest.raises(Malformed, match=r"F32 \[9\] instead of F32 \[8\]"):
        check_weights(save({**good, norm: np.zeros(9, dtype=np.float32)}), expected)
    with pytest.raises(Malformed, match="NaN"):
        check_weights(save({**good, norm: np.full(8, np.nan, dtype=np.float32)}), expected)
