"""Inputs for a decoder, by Hypothesis: its seeds changed a little, and things of its kind.

Bytes are cut, replaced and spliced; of JSON also single values are replaced by others and
keys are added; messages are made of any values that protobuf can encode.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from fuzz.decoders import Decoder
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

AWKWARD = (
    b"\0", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\n", b"\x1b[2J", b"[" * 3000, b"{" * 10,
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"9" * 30, b'"\\ud800"', b"\\u0000", b"null",
    b"../", b"..\\", b"/etc/passwd", b"shard/-1", b"\xc3\x28", b"true", b'"x":[{}],',
)  # fmt: skip
WORDS = (
    "", ".", "..", "../x", "/etc", "a/b", "a\\b", "C:x", "x\0y", "\x1b[2J", "\n", "é", "\ud800",
    "router_round/0/1", "shard/heldout", "train_expert/-1", "scores", "parameters", "x" * 600,
)  # fmt: skip
_texts = st.sampled_from([word for word in WORDS if word.isprintable()]) | st.text(max_size=20)
_integers = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63)])
_floats = st.floats() | st.sampled_from([float("inf"), float("nan"), 1e308, 0.5])
_json = st.recursive(
    st.none() | st.booleans() | _integers | _floats | st.sampled_from(WORDS) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=6,
)


def inputs(decoder: Decoder) -> st.SearchStrategy[bytes]:
    """What to feed a decoder."""
    kinds = [_edited(decoder.seeds), st.binary(max_size=300)]
    if decoder.json:
        kinds.append(_edited_json([json.loads(seed) for seed in decoder.seeds]))
    if decoder.message is not None:
        kind = decoder.message
        kinds.append(_messages(kind.DESCRIPTOR).map(lambda values: _serialized(kind, values)))
    return st.one_of(kinds)


@st.composite
def _edited(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 12)))
        data[at:end] = draw(st.binary(max_size=8) | st.sampled_from(AWKWARD))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@st.composite
def _edited_json(draw: st.DrawFn, seeds: list[Any]) -> bytes:
    root = [copy.deepcopy(draw(st.sampled_from(seeds)))]  # so that the whole can be replaced
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(_places(root)))
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "add" and isinstance(holder[key], dict):
            holder[key][draw(st.sampled_from(WORDS))] = draw(_json)
        elif change == "remove" and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = draw(_json)
    text = json.dumps(root[0] if root else None, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Every value in a tree, as what holds it and where."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    found: list[tuple[Any, Any]] = [(holder, key) for key in keys]
    for key in keys:
        if isinstance(holder[key], dict | list):
            found += _places(holder[key])
    return found


def _messages(kind: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """Values of some of a message's fields."""
    fields = {field.name: _values(field) for field in kind.fields}
    return st.fixed_dictionaries({}, optional=fields)


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    one = _value(field)
    return st.lists(one, max_size=4) if field.is_repeated else one


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=70) | st.sampled_from([16, 32, 64]).map(bytes)
        case FieldDescriptor.CPPTYPE_STRING:
            return _texts
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return _floats
        case FieldDescriptor.CPPTYPE_UINT32:
            return st.integers(0, 2**32 - 1)
        case FieldDescriptor.CPPTYPE_UINT64:
            return st.sampled_from([0, 1, 7, 2**63 - 1, 2**63, 2**64 - 1])
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return _messages(field.message_type)
    raise NotImplementedError(f"a field of another type: {field.full_name}")


def _serialized(kind: type[Message], values: dict[str, Any]) -> bytes:
    return kind(**values).SerializeToString()
