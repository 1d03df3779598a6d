"""What docs say is shown by a test is shown by one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`([a-z_]+/test_[a-z0-9_]+)`")
BENCHMARK = re.compile(r"`(benchmarks/[a-z0-9_]+\.py)")
CODE = re.compile(r"`(?!\w+/test_)((?:smalltalk_fed|coordinator|node|docs)/[A-Za-z0-9_./-]+)`")


@pytest.mark.parametrize("page", ["docs/privacy.md", "docs/survival.md", "docs/threat-model.md"])
def test_every_test_and_benchmark_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    tests = {f"tests/{name}.py" for name in TEST.findall(text)}
    named = tests | set(BENCHMARK.findall(text))
    assert len(tests) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", ["docs/survival.md", "docs/threat-model.md"])
def test_every_row_of_a_table_says_what_shows_it(page: str) -> None:
    """The last column of a table with a `shown by` names something, or says that nothing does."""
    shown_by = False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            shown_by = False
        elif line.rstrip("| ").endswith("shown by"):
            shown_by = True
        elif shown_by and not set(line) <= set("|-"):
            last = line.strip("|").rsplit("|", 1)[-1].strip()
            assert "`" in last or last == "nothing" or "simulation" in last, line


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/threat-model.md", "docs/egress.md"])
def test_every_file_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(CODE.findall(text)) | set(re.findall(r"\b(docs/[a-z-]+\.md)\b", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
