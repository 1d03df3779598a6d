"""What a decoder is, what it may do with bytes from elsewhere, and the table of all of them.

Rules: a decoder either understands its input or refuses it with an error that it declares:
ours, one sentence, no longer than `LONGEST_SENTENCE`, printable (so that nobody writes into
another's terminal or log), or what the carrier itself refuses before our code sees it. Every
other exception is a bug. It allocates no more than a constant times its input and a constant.
Hypothesis and atheris feed the same table; inputs that once broke something lie in
`cases/NAME/`. Where the decoders come from: `messages` and `blobs` (what arrives over the
network), `files` and `run_files` (what travelled as a file).
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from smalltalk_fed.errors import SmalltalkError

CASES = Path(__file__).with_name("cases")
LONGEST_SENTENCE = 1000  # characters; the carrier cuts there
BYTES_PER_BYTE = 256  # an empty JSON object is 3 bytes on the wire and 64 in Python
BYTES_AT_MOST = 1 << 20


@dataclass(frozen=True)
class Decoder:
    """A function of bytes, the errors that it may raise, and inputs that it understands."""

    name: str
    decode: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    json: bool = False  # inputs are JSON
    message: type[Message] | None = None  # inputs are this message

    @property
    def cases(self) -> list[bytes]:
        """Inputs that once broke it."""
        folder = CASES / self.name.replace(" ", "-")
        return [path.read_bytes() for path in sorted(folder.glob("*"))]


def feed(decoder: Decoder, data: bytes) -> bool:
    """Decode `data`; returns whether it was understood.

    Whatever the decoder must not do is an exception here.
    """
    try:
        decoder.decode(data)
    except decoder.refuses as error:
        if isinstance(error, SmalltalkError):
            _check_sentence(str(error))
        return False
    return True


def feed_measured(decoder: Decoder, data: bytes) -> bool:
    """`feed`, and look at the memory; `tracemalloc` must be on."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    understood = feed(decoder, data)
    peak = tracemalloc.get_traced_memory()[1] - before
    allowed = BYTES_AT_MOST + BYTES_PER_BYTE * len(data)
    assert peak <= allowed, f"{peak} bytes for an input of {len(data)}; {allowed} are allowed"
    return understood


def _check_sentence(said: str) -> None:
    assert 0 < len(said) <= LONGEST_SENTENCE, f"an error of {len(said)} characters"
    assert said.isprintable(), f"an error that can't be shown: {said[:200]!r}"


def every_decoder() -> dict[str, Decoder]:
    """The table, by name."""
    from fuzz import blobs, files, messages, run_files

    found = (
        *messages.decoders(),
        *blobs.decoders(),
        *files.decoders(),
        *run_files.decoders(),
    )
    table = {decoder.name: decoder for decoder in found}
    assert len(table) == len(found), "two decoders have one name"
    return table
