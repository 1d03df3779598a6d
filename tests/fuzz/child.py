"""Decoders under atheris, each in a process of its own: started and told what to do by `run`.

Importing everything instrumented takes seconds, so it is done once: every line of the standard
input is an order (a decoder's name, libFuzzer's flags, a file for what is said), done in a fork;
its exit code and the CPU seconds it took are the answer. Only our packages are instrumented, and
TOML's parser, which is Python: what is C or Rust below them (protobuf, safetensors, pydantic,
tokenizers, SQLite, OpenSSL) runs as it is. A fork may not grow by more than `ROOM_BYTES`, so that
an allocation by a claimed length is found.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Any

import atheris

INSTRUMENTED = ["smalltalk_fed", "smalltalk_node", "smalltalk_coordinator", "tomllib"]
ROOM_BYTES = 512 << 20

with atheris.instrument_imports(include=INSTRUMENTED):
    from fuzz.decoders import Decoder, every_decoder, feed

    TABLE = every_decoder()


def one_input(decoder: Decoder, data: bytes) -> None:
    """What libFuzzer calls; an exception is a finding."""
    feed(decoder, data)


def fuzz(order: dict[str, Any]) -> None:
    """Fuzz until the flags say that it is enough; does not return."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    logging.disable()  # a warning for each damaged journal
    decoder = TABLE[order["name"]]
    with atheris.instrument_imports(include=INSTRUMENTED):
        for seed in decoder.seeds:
            feed(decoder, seed)  # imports what is imported late
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    atheris.Setup([sys.argv[0], *order["flags"]], functools.partial(one_input, decoder))
    atheris.Fuzz()


def main() -> None:
    """Do order after order."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        child = os.fork()
        if not child:
            fuzz(json.loads(line))
        _, status, used = os.wait4(child, 0)
        cpu_s = used.ru_utime + used.ru_stime
        answers.write(f"{os.waitstatus_to_exitcode(status)} {cpu_s:.1f}\n")


if __name__ == "__main__":
    main()
