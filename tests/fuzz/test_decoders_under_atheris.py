"""A few thousand executions of each decoder, coverage-guided; `make fuzz` runs for longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import run
from fuzz.decoders import Decoder, every_decoder

EXECUTIONS = 3000
TABLE = every_decoder()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not run.installed(), reason=run.MISSING),
]


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[run.Fuzzer]:
    with run.Fuzzer() as made:
        yield made


@pytest.mark.parametrize("decoder", TABLE.values(), ids=TABLE)
def test_nothing_breaks_it_within_a_few_thousand_executions(
    decoder: Decoder, fuzzer: run.Fuzzer, tmp_path: Path
) -> None:
    outcome = fuzzer.fuzz(decoder, tmp_path, executions=EXECUTIONS)
    assert outcome.verdict == "ok", (outcome.verdict, outcome.crash)
    assert outcome.executions >= EXECUTIONS
