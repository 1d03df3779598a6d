"""One decoder under atheris, in a process of its own: `python -m fuzz.child NAME [FLAGS]`.

FLAGS are libFuzzer's. Only our packages are instrumented: what is C or Rust below them
(protobuf, safetensors, pydantic, tokenizers, SQLite, OpenSSL) runs as it is. The process may
not grow by more than `ROOM_BYTES`, so that an allocation by a claimed length is found.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import atheris

OURS = ["smalltalk_fed", "smalltalk_node", "smalltalk_coordinator"]
ROOM_BYTES = 512 << 20

with atheris.instrument_imports(include=OURS):
    from fuzz.decoders import every_decoder, feed

    DECODER = every_decoder()[sys.argv.pop(1)]
    for seed in DECODER.seeds:
        feed(DECODER, seed)  # imports what is imported late


def one_input(data: bytes) -> None:
    """What libFuzzer calls; an exception is a finding."""
    feed(DECODER, data)


def main() -> None:
    """Fuzz until the flags say that it is enough; does not return."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
