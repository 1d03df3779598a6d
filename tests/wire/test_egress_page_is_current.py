"""docs/egress.md is made from the declarations, and has every one of them."""

from __future__ import annotations

from pathlib import Path

from smalltalk_fed.wire.egress import BLOBS, FIGURES, egress_rows, figure_is_declared
from smalltalk_fed.wire.egress_page import markdown

PAGE = Path(__file__).parents[2] / "docs" / "egress.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run `make docs`"


def test_every_row_is_on_the_page() -> None:
    page = markdown()
    for row in egress_rows():
        name = row.field.removeprefix("data: ")
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert line
        assert row.what in page
        assert f"| {row.size} |" in page
    for name in (*BLOBS, *FIGURES):
        assert f"| `{name}` |" in page


def test_only_figures_that_are_listed_are_declared() -> None:
    assert figure_is_declared("loss_mean")
    assert figure_is_declared("loss_at_4000")
    for name in ("loss_at_", "loss_at_N2", "loss_at_1.5", "tokens_1", ""):
        assert not figure_is_declared(name)
