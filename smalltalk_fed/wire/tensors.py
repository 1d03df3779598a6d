"""Weights as bytes, read by somebody who does not trust them and has no torch.

safetensors: eight bytes of header length, a JSON header, then the numbers. Rules: the header
is read within a limit and checked completely (names, dtypes, shapes, offsets that cover the
data without gap or overlap) before a number is touched; numbers are looked at a few
megabytes at a time, so that a file as large as an expert never stands in memory. Nothing
that executes is ever read. Building models from weights is `smalltalk_fed.model`'s part.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from smalltalk_fed.config.manifest import MAX_HEADER_BYTES
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.errors import Malformed, TooLarge, WorldError, shown

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
CHUNK_BYTES = 1 << 18

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "U16": 2, "U32": 4, "U64": 8, "BOOL": 1,
}  # fmt: skip
_FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: `start` and `end` are byte offsets in the file."""

    dtype: str  # safetensors' name: F32, BF16, ...
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A safetensors file's header."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    file_bytes: int


def read_header(source: bytes | Path, limit: int = MAX_HEADER_BYTES) -> Header:
    """The checked header of a safetensors file, given as bytes or path.

    Raises:
        TooLarge: the header is over `limit` bytes or names too many tensors.
        Malformed: it is not a safetensors file, or its parts contradict each other.
        WorldError: the path can't be read.
    """
    with _open(source) as file:
        total = file.seek(0, io.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > total - 8:
            raise Malformed("the weights are shorter than their header says")
        if length > limit:
            raise TooLarge(f"the weights' header has {length} bytes; at most {limit} are allowed")
        raw = file.read(length)
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError):
        raise Malformed("the weights' header is not JSON with each name once") from None
    if not isinstance(table, dict):
        raise Malformed("the weights' header is not a table")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Malformed("the weights' metadata is not a table of texts")
    if len(table) > MAX_TENSORS:
        raise TooLarge(f"the weights have {len(table)} tensors; at most {MAX_TENSORS} are allowed")
    tensors = {name: _entry(name, fields, 8 + length) for name, fields in table.items()}
    _check_cover(tensors.values(), 8 + length, total)
    return Header(tensors, metadata, total)


def check_finite(source: bytes | Path, header: Header | None = None) -> None:
    """Look at every floating-point number of a safetensors file, a few megabytes at a time.

    Raises:
        Malformed: a tensor has a NaN or an infinity (or as `read_header`).
    """
    header = header or read_header(source)
    with _open(source) as file:
        for name, entry in header.tensors.items():
            if entry.dtype not in _FLOATS and entry.dtype != "BF16":
                continue
            file.seek(entry.start)
            left = entry.end - entry.start
            while left:
                data = file.read(min(left, CHUNK_BYTES))
                if not data:
                    raise Malformed("the weights became shorter while they were read")
                if not _finite(data, entry.dtype):
                    raise Malformed(f"tensor '{shown(name)}' has a NaN or an infinity")
                left -= len(data)


def check_weights(source: bytes | Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check weights completely: these names and shapes, F32, every number finite.

    Raises:
        Malformed: they are not, and why.
    """
    header = read_header(source)
    odd = sorted(set(expected) ^ set(header.tensors))
    if odd:
        fault = "is missing" if odd[0] in expected else "does not belong to this shape"
        raise Malformed(f"the weights are for another model: '{shown(odd[0])}' {fault}")
    for name, shape in expected.items():
        entry = header.tensors[name]
        if entry.shape != shape or entry.dtype != "F32":
            raise Malformed(
                f"the weights are for another model: '{name}' is {entry.dtype} "
                f"{list(entry.shape)} instead of F32 {list(shape)}"
            )
    check_finite(source, header)


def expected_llama_tensors(shape: ModelShape, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of transformers' LlamaForCausalLM of this shape.

    The tied embedding comes once, as `model.embed_tokens.weight`.
    """
    width, inner = shape.hidden, shape.feed_forward_width
    layer = {
        "input_layernorm": (width,),
        "mlp.down_proj": (width, inner),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "post_attention_layernorm": (width,),
        "self_attn.k_proj": (width, width),
        "self_attn.o_proj": (width, width),
        "self_attn.q_proj": (width, width),
        "self_attn.v_proj": (width, width),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for index in range(shape.layers):
        tensors |= {f"model.layers.{index}.{part}.weight": size for part, size in layer.items()}
    return tensors | {"model.norm.weight": (width,)}


# ----------------------------------------------------------------------------------- inner


def _open(source: bytes | Path) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise WorldError(f"{source} can't be read ({error.strerror or error}).") from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table


def _entry(name: str, fields: object, data_start: int) -> TensorEntry:
    wrong = Malformed(f"the weights' header has an entry that can't be read: '{shown(name)}'")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise wrong
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or not _counts(offsets):
        raise wrong
    if len(offsets) != 2:
        raise wrong
    size = _BYTES[dtype]
    for count in shape:
        size *= count
    if offsets[1] - offsets[0] != size:
        raise Malformed(f"tensor '{shown(name)}' has another size than its shape and dtype say")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**48 for value in values
    )


def _check_cover(entries: Iterable[TensorEntry], start: int, end: int) -> None:
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != start:
            raise Malformed("the weights' tensors overlap or leave a gap")
        start = entry.end
    if start != end:
        raise Malformed("the weights have bytes that no tensor covers, or too few")


def _finite(data: bytes, dtype: str) -> bool:
    if dtype == "BF16":
        bits = np.frombuffer(data, dtype="<u2")
        return not bool(np.any((bits & 0x7F80) == 0x7F80))
    return bool(np.isfinite(np.frombuffer(data, dtype=_FLOATS[dtype])).all())
