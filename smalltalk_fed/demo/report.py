"""report.html and report.png out of report.json's content: one self-contained page.

Rules: everything on the page comes from the report; no script, no network, no date but the
report's own. Light and dark follow the reader's system; it prints. The words are honest:
what was measured, at which scale, and when a mixture does not pay.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from smalltalk_fed.demo import figures
from smalltalk_fed.demo.live import size
from smalltalk_fed.demo.plan import TITLES, Step
from smalltalk_fed.demo.style import (
    ACCENT,
    DENSE,
    GRID,
    INK,
    MUTED,
    PAPER,
    Drawing,
    expert_colour,
    to_png,
    to_svg,
)

Report = dict[str, Any]


def render_html(report: Report) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": size,
        "short": figures.short,
        "percent": _percent,
        "figure": _figure,
        "plain": figures.plain,
    }
    return environment.get_template("report.html.jinja").render(
        r=report,
        svg=_svgs(report),
        sentence=headline(report),
        verdict=verdict(report),
        agreement=_agreement_words(report),
        dominated=_coordination_words(report),
        kinds=_kinds(report),
        colour=expert_colour,
        accent=ACCENT,
        dense=DENSE,
        light={"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER},
        step_title=lambda name: TITLES[Step(name)] if name in set(Step) else name,
        heat=_heat,
    )


def headline(report: Report) -> str:
    """The result in one sentence."""
    ratio = report["ratio_suffix"]
    experts = report["mixture"]["experts"]
    change = abs(1 - ratio)
    word = "lower" if ratio < 1 else "higher"
    return (
        f"A mixture of {experts} experts reaches a perplexity of "
        f"{report['mixture']['suffix_ppl']:.1f} on held-out text, {change:.0%} {word} than the "
        f"{report['dense']['suffix_ppl']:.1f} of one dense model of the same size trained on the "
        "same number of tokens."
    )


def verdict(report: Report) -> str:
    """What this says, and what it does not."""
    ratio, tokens = report["ratio_suffix"], report["mixture"]["tokens"] / 1e6
    parameters = report["mixture"]["parameters_of_an_expert"] / 1e3
    if ratio < 1:
        meaning = (
            "The gain comes from text whose kinds can be told apart: each expert spends its "
            "capacity on its own kinds."
        )
    else:
        meaning = (
            "The mixture lost: with so few tokens its experts, which see a share each, have not "
            "reached what they can hold."
        )
    return (
        f"This is a miniature: experts of {parameters:,.0f}k parameters and {tokens:.1f}M tokens "
        f"in all. {meaning} On text of one kind a mixture of this size loses to the dense model. "
        "Try a sample of your own text before a long run."
    )


def draw_picture(report: Report) -> bytes:
    """report.png: the essentials in one picture."""
    with Drawing(12.6, 5.4) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=[1.1, 1.0], height_ratios=[0.8, 1.25])
        domains = figure.add_subplot(grid[:, 0])
        figures.draw_domains(domains, report)
        domains.set_title("Which expert got which domain, round by round", pad=24)
        figures.expert_key(
            domains, report, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.1
        )
        bars = figure.add_subplot(grid[0, 1])
        _draw_result(bars, report)
        moved = figure.add_subplot(grid[1, 1])
        figures.draw_bytes(moved, report)
        moved.set_title("What travels")
        return to_png(figure)


def _draw_result(ax: Any, report: Report) -> None:
    """Two bars and their ratio."""
    ours, theirs = report["mixture"]["suffix_ppl"], report["dense"]["suffix_ppl"]
    ax.barh([0, -1], [ours, theirs], color=[ACCENT, DENSE], height=0.62)
    for place, value in ((0, ours), (-1, theirs)):
        ax.text(value * 1.01, place, f"{value:.1f}", va="center", color=INK)
    ax.set_yticks([0, -1], ["mixture", "dense"])
    for tick in ax.get_yticklabels():
        tick.set_color(INK)
    ax.set_xlim(0, max(ours, theirs) * 1.15)
    ax.set_xlabel("suffix perplexity, held-out text (lower is better)")
    ax.set_title(f"Perplexity of the dense model × {report['ratio_suffix']:.3f}")
    ax.spines["left"].set_visible(False)
    figures.quiet(ax, "x")


def _svgs(report: Report) -> dict[str, Markup]:
    """All pictures of the page by name."""
    domains = max(2.2, 0.42 * len(report["domains"]) + 0.9)
    bars = 0.36 * len(figures.byte_bars(report)) + 0.9
    one: dict[str, tuple[float, float, Callable[[Any, Report], None]]] = {
        "domains": (9.4, domains, figures.draw_domains),
        "agreement": (4.6, 2.8, figures.draw_agreement),
        "losses": (4.6, 3.0, figures.draw_losses),
        "router-losses": (4.6, 2.8, figures.draw_router_losses),
        "load": (4.6, 3.0, figures.draw_load),
        "perplexities": (9.4, 0.36 * len(report["domains"]) + 1.3, figures.draw_perplexities),
        "bytes": (9.4, bars, figures.draw_bytes),
        "timeline": (9.4, 0.3 * len(report["timeline"]) + 0.8, figures.draw_timeline),
    }
    drawn: dict[str, Markup] = {}
    if not report["domains"]:  # a corpus without labels
        one = {name: one[name] for name in one if name not in ("domains", "agreement")}
    for name, (width, height, draw) in one.items():
        with Drawing(width, height) as figure:
            draw(figure.add_subplot(), report)
            drawn[name] = _markup(figure, name)
    with Drawing(9.4, 2.4) as figure:
        displaced, excess = figure.subplots(1, 2)
        figures.draw_balance(displaced, excess, report)
        drawn["balance"] = _markup(figure, "balance")
    return drawn


def _markup(figure: Figure, name: str) -> Markup:
    return Markup(to_svg(figure, name))


def _agreement_words(report: Report) -> str:
    nmi = report["agreement"]["segments_nmi"]
    if nmi is None:
        return "The corpus has no labels to compare with."
    shares = [row["top_share"] for row in report["domains"] if row["top_share"] is not None]
    return (
        f"Labels were never used in training. Afterwards, experts and domains agree to {nmi:.2f} "
        "(normalised mutual information: 0 is chance, 1 is the same division); on average "
        f"{sum(shares) / len(shares):.0%} of a domain is in one expert. With "
        f"{report['mixture']['experts']} experts of equal load for {len(shares)} domains of "
        "unequal size the best possible is below 1."
    )


# What the ledger's kinds are to a reader.
KINDS = {
    "parameters": "router parameters",
    "scores": "score blocks",
    "ids": "id lists: shares and segments",
    "experts": "experts of sequences: sharding",
    "exchange": "orders and progress",
    "join": "joining",
    "blob_state": "state of uploads",
    "weights": "experts' weights",
    "config": "experts' configurations",
    "seed": "the seed model",
}


def _kinds(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """The ledger's lines by category, the largest first."""
    return sorted(
        ((KINDS.get(kind, kind), row) for kind, row in report["bytes"]["by_kind"].items()),
        key=lambda item: (item[1]["category"], -item[1]["up"] - item[1]["down"]),
    )


def _coordination_words(report: Report) -> str:
    """Which kind of message most of the coordination is."""
    kinds = {
        kind: row["up"] + row["down"]
        for kind, row in report["bytes"]["by_kind"].items()
        if row["category"] == "coordination"
    }
    if not sum(kinds.values()):
        return ""
    most = max(kinds, key=lambda kind: kinds[kind])
    return (
        f"Of the coordination {kinds[most] / sum(kinds.values()):.0%} is "
        f"{KINDS.get(most, most)}. A miniature trains few tokens, "
        "so what does not depend on tokens weighs much here; coordination "
        "does not grow with the expert, DDP and DiLoCo do."
    )


def _percent(value: float, digits: int = 0) -> str:
    return f"{value:.{digits}%}"


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _heat(share: float, expert: int) -> Markup:
    """A cell's style: the expert's colour, as strong as the share."""
    return Markup(f"--c:{expert_colour(expert)};--s:{100 * share:.0f}%")


def _template(name: str) -> str:
    return resources.files("smalltalk_fed.demo").joinpath(name).read_text("utf-8")
