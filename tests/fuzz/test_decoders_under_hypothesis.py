"""Whatever arrives is understood or refused in a sentence, in memory that its length bounds."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fuzz.decoders import BYTES_AT_MOST, Decoder, every_decoder, feed, feed_measured
from fuzz.messages import NOT_READ
from fuzz.strategies import inputs
from hypothesis import HealthCheck, given, settings

from smalltalk_fed.errors import PeerError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert, convert_admin, convert_measuring, convert_serving

TABLE = every_decoder()
EXAMPLES = 18
LARGE_BYTES = 1 << 15
each = pytest.mark.parametrize("decoder", TABLE.values(), ids=TABLE)
each_json = pytest.mark.parametrize(
    "decoder", [decoder for decoder in TABLE.values() if decoder.json], ids=lambda d: d.name
)


@contextlib.contextmanager
def measuring(decoder: Decoder) -> Iterator[None]:
    """Trace memory. What is imported and kept at the first call is no input's, and comes before."""
    for seed in decoder.seeds:
        feed(decoder, seed)
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@each
def test_what_is_right_is_understood(decoder: Decoder) -> None:
    for seed in decoder.seeds:
        assert feed(decoder, seed), seed[:200]


@each
def test_what_once_broke_it_does_so_no_more(decoder: Decoder) -> None:
    with measuring(decoder):
        for case in decoder.cases:
            feed_measured(decoder, case)


@each
def test_anything_else_is_understood_or_refused(decoder: Decoder) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs(decoder))
    def fed(data: bytes) -> None:
        feed_measured(decoder, data)

    draw_once(decoder)
    with measuring(decoder):
        fed()


def draw_once(decoder: Decoder) -> None:
    """At its first example Hypothesis reads all modules: slow, if memory is traced."""

    @settings(max_examples=1, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(decoder))
    def drawn(_: bytes) -> None:
        pass

    drawn()


def _nested(_: Any) -> bytes:
    return b"[" * LARGE_BYTES


def _empty_objects(_: Any) -> bytes:
    return json.dumps([{}] * (LARGE_BYTES // 4)).encode()


def _unknown_keys(seed: Any) -> bytes:
    odd = {f"{number:x}": 1 for number in range(LARGE_BYTES // 10)}
    return json.dumps(seed | odd if isinstance(seed, dict) else [odd]).encode()


def _long_key(seed: Any) -> bytes:
    return json.dumps({"k" * LARGE_BYTES: 1} | (seed if isinstance(seed, dict) else {})).encode()


def _wrong_items(seed: Any) -> bytes:
    """Every list is a long one of the wrong things."""
    return json.dumps(_filled(seed)).encode()


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner) for key, inner in value.items()}
    return [{}] * (LARGE_BYTES // 8) if isinstance(value, list) else value


@each_json
@pytest.mark.parametrize(
    "make", [_nested, _empty_objects, _unknown_keys, _long_key, _wrong_items]
)  # fmt: skip
def test_large_inputs_cost_no_more_than_their_length_allows(
    decoder: Decoder, make: Callable[[Any], bytes]
) -> None:
    with measuring(decoder):
        for seed in decoder.seeds:
            feed_measured(decoder, make(json.loads(seed)))


def test_the_check_of_memory_sees_an_allocation_by_a_claimed_length() -> None:
    def trusting(data: bytes) -> None:
        bytearray(int.from_bytes(data[:4], "little"))

    decoder = Decoder("trusting", trusting, (PeerError,), ())
    with measuring(decoder):
        feed_measured(decoder, (BYTES_AT_MOST // 2).to_bytes(4, "little"))
        with pytest.raises(AssertionError, match="are allowed"):
            feed_measured(decoder, (BYTES_AT_MOST * 2).to_bytes(4, "little"))


@pytest.mark.parametrize("said", ["", "x" * 1001, "two\nlines", "\x1b[2J", "half \ud800"])
def test_the_check_of_sentences_sees_what_can_not_be_shown(said: str) -> None:
    def rude(data: bytes) -> None:
        raise PeerError(said)

    with pytest.raises(AssertionError):
        feed(Decoder("rude", rude, (PeerError,), ()), b"")


def test_every_message_of_the_protocol_is_in_the_table() -> None:
    travels = set()
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            travels |= {method.input_type.name, method.output_type.name}
    listed = {name.removeprefix("message ") for name in TABLE if name.startswith("message ")}
    assert travels == listed | set(NOT_READ)


def test_every_conversion_is_reached_by_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = set()
    modules = (convert, convert_admin, convert_measuring, convert_serving)
    names = {
        name
        for module in modules
        for name, function in vars(module).items()
        if name.endswith("_from_proto") and function.__module__ == module.__name__
    }
    for module in modules:
        for name in names & set(vars(module)):
            monkeypatch.setattr(module, name, _noting(name, getattr(module, name), reached.add))
    for decoder in every_decoder().values():
        for seed in decoder.seeds if decoder.message else ():
            feed(decoder, seed)
    assert reached == names


def _noting(name: str, function: Callable[..., Any], note: Callable[[str], None]) -> Any:
    def noted(*arguments: Any) -> Any:
        note(name)
        return function(*arguments)

    return noted
