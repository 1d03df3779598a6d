"""report.json has what it promises, and the page is one file that stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from smalltalk_fed.demo.report import draw_picture, headline, render_html, verdict
from smalltalk_fed.demo.results import collect
from smalltalk_fed.demo.stage import Findings
from smalltalk_fed.demo.style import GRID, INK

REQUIRED = """
mixture.suffix_ppl mixture.all_ppl mixture.bits_per_byte dense.suffix_ppl dense.all_ppl
dense.bits_per_byte ratio_suffix experts.0.sequences experts.0.tokens experts.0.suffix_ppl
experts.0.domains rounds.0.load rounds.0.displaced_fraction rounds.0.excess_nats
rounds.0.agreement bytes.coordination_up bytes.coordination_down bytes.weights_up
bytes.weights_down bytes.data bytes.per_node.0.coordination_up bytes.per_node.0.data
bytes.per_trained_token.coordination bytes.per_trained_token.data
bytes.formulas_per_trained_token.ddp_fp32 bytes.formulas_per_trained_token.diloco_fp32
seconds.routing seconds.training seconds.total coordinator.cpu_s coordinator.rss_peak_mb
seed versions.torch
"""


@pytest.fixture(scope="module")
def collected(findings: Findings, labelled_corpus: Path, assignments: Path) -> str:
    return json.dumps(collect(findings, labelled_corpus, assignments), allow_nan=False)


@pytest.fixture
def report(collected: str) -> dict:
    """A copy to change."""
    return json.loads(collected)


@pytest.fixture(scope="module")
def page(collected: str) -> str:
    return render_html(json.loads(collected))


def test_the_report_has_every_promised_figure(report: dict) -> None:
    for path in REQUIRED.split():
        value = report
        for part in path.split("."):
            value = value[int(part)] if part.isdigit() else value[part]
        assert value is not None, path


def test_agreement_is_low_at_random_and_nearly_whole_where_the_division_is(report: dict) -> None:
    assert all(row["agreement"] < 0.3 for row in report["rounds"])
    assert 0.9 < report["agreement"]["segments_nmi"] < 1.0
    assert report["agreement"]["heldout_nmi"] == pytest.approx(1.0)


def test_domains_and_experts_count_the_same_sequences(report: dict) -> None:
    by_domain = sum(row["sequences"] for row in report["domains"])
    by_expert = sum(sum(row["domains"].values()) for row in report["experts"])
    assert by_domain == by_expert == report["corpus"]["train_sequences"]
    shares = [row["top_share"] for row in report["domains"]]
    assert min(shares) < 1.0 == max(shares)


def test_bytes_per_token_add_up(report: dict) -> None:
    moved = report["bytes"]
    assert moved["trained_tokens"] == 3000
    assert moved["per_trained_token"]["coordination"] == pytest.approx((18800 + 1400) / 3000)
    assert sum(node["coordination_up"] for node in moved["per_node"]) == moved["coordination_up"]
    assert sum(node["data"] for node in moved["per_node"]) == moved["data"]
    kinds = moved["by_kind"]
    assert kinds["parameters"] == {
        "category": "coordination",
        "up": 18000,
        "down": 0,
        "messages": 8,
    }


def test_curves_are_in_the_order_of_steps(report: dict) -> None:
    assert report["curves"]["experts"]["0"] == [[1, 6.0], [10, 3.5]]
    assert report["curves"]["dense"] == [[1, 6.0], [10, 4.0]]


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert "http" not in re.sub(r"HTTP/2", "", page)
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    assert not re.findall(r"url\((?!#)", page)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "svg":
            self.figures.append(str(values["aria-label"]))


def test_every_figure_is_there_and_ids_are_unique(page: str) -> None:
    parsed = _Page()
    parsed.feed(page)
    expected = {"domains", "agreement", "losses", "bytes", "timeline", "perplexities", "load"}
    assert expected <= set(parsed.figures)
    assert sorted(parsed.ids) == sorted(set(parsed.ids))


def test_text_of_samples_is_escaped(page: str) -> None:
    assert "&lt;/pre&gt;&lt;script&gt;" in page
    assert "more &amp; more" in page


def test_pictures_follow_the_theme(page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(pictures) >= 8
    for picture in pictures:
        assert "var(--muted)" in picture
        assert INK not in picture
        assert GRID not in picture


def test_words_say_who_won(report: dict) -> None:
    assert "10% lower than the 10.0" in headline(report)
    assert "On text of one kind" in verdict(report)
    report["ratio_suffix"], report["mixture"]["suffix_ppl"] = 1.2, 12.0
    assert "20% higher" in headline(report)
    assert "lost" in verdict(report)


def test_a_corpus_without_labels_still_makes_a_page(report: dict) -> None:
    report["domains"], report["samples"] = [], []
    report["agreement"] = {"segments_nmi": None, "heldout_nmi": None}
    for row in report["rounds"]:
        row["agreement"], row["domains_by_expert"] = None, []
    assert "no labels" in render_html(report)


def test_the_picture_is_a_png(report: dict) -> None:
    assert draw_picture(report).startswith(b"\x89PNG")
