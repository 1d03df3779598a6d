"""The report's pictures, each a function of report.json's content that draws into Axes.

Rules: axes carry units; domains are rows in the report's order, experts are colours; what
the mixture did has the accent colour, the dense model and formulas are grey.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from smalltalk_fed.demo.plan import Step
from smalltalk_fed.demo.style import ACCENT, DENSE, GRID, INK, expert_colour, quiet

Report = dict[str, Any]

FORMULA_NAMES = {
    "ddp_fp32": "formula: DDP, fp32 gradients",
    "diloco_fp32": "formula: DiLoCo, H = 500, fp32",
    "diloco_int8": "formula: DiLoCo, H = 500, int8",
    "routers_up": "formula: routers up every round",
    "smalltalk_scores": "formula: scores up, ids down",
    "smalltalk_broadcast": "formula: routers broadcast once",
}


def draw_domains(ax: Axes, report: Report) -> None:
    """Who got which domain at which round: a row a domain, in each round a stacked bar.

    A gap, then the sharding of the whole corpus by the finished routers.
    """
    rounds, domains = report["rounds"], report["domains"]
    experts, last = report["mixture"]["experts"], len(report["rounds"])
    columns = [np.array(row["domains_by_expert"], dtype=float) for row in rounds]
    columns.append(np.array([row["experts"] for row in domains], dtype=float))
    whole = last + 1.0 + min(0.8, 0.04 * last)  # where the whole corpus' column stands
    places = [*range(1, last + 1), whole]
    for place, table_DxE in zip(places, columns, strict=True):
        totals = table_DxE.sum(axis=1, keepdims=True)
        shares_DxE = np.divide(table_DxE, totals, out=np.zeros_like(table_DxE), where=totals > 0)
        for domain in range(len(domains)):
            bottom = -domain - 0.41
            for expert in range(experts):
                height = 0.82 * shares_DxE[domain, expert]
                ax.bar(
                    place,
                    height,
                    bottom=bottom,
                    width=0.86,
                    color=expert_colour(expert),
                    linewidth=0,
                )
                bottom += height
    ax.set_yticks([-d for d in range(len(domains))], [plain(row["domain"]) for row in domains])
    for tick in ax.get_yticklabels():
        tick.set_color(INK)
    step = max(1, round(last / 8))
    ticks = list(range(1, last + 1, step))
    ax.set_xticks([*ticks, whole], [*map(str, ticks), "all"])
    for domain, row in enumerate(domains):
        if row["top_share"] is not None:
            ax.text(
                whole + 0.43 + 0.008 * last,
                -domain,
                f"{row['top_share']:.0%} in {row['top_expert']}",
                va="center",
                fontsize=9,
                color=expert_colour(row["top_expert"]),
                weight="bold",
            )
    ax.set_xlim(0.4, whole + 0.45)
    ax.set_ylim(-len(domains) + 0.45, 0.55)
    ax.set_xlabel("round of EM (first: at random)")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def expert_key(ax: Axes, report: Report, **where: Any) -> None:
    """The experts' colours."""
    experts = report["mixture"]["experts"]
    handles = [Patch(color=expert_colour(e), label=f"expert {e}") for e in range(experts)]
    ax.legend(handles=handles, ncols=min(experts, 8), handlelength=0.9, columnspacing=1.2, **where)


def draw_agreement(ax: Axes, report: Report) -> None:
    """Agreement with the domains per round."""
    rows = [row for row in report["rounds"] if row["agreement"] is not None]
    numbers, values = [row["round"] for row in rows], [row["agreement"] for row in rows]
    ax.plot(numbers, values, color=ACCENT, linewidth=2, marker="o", markersize=3)
    final = report["agreement"]["segments_nmi"]
    if final is not None and numbers:
        ax.plot([numbers[-1] + 0.8], [final], marker="D", color=ACCENT, markersize=5)
        ax.annotate(
            f"{final:.2f} over the whole corpus",
            (numbers[-1] + 0.8, final),
            xytext=(-8, 8),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=INK,
        )
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("NMI")
    ax.set_xlabel("round of EM")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(ax)


def draw_losses(ax: Axes, report: Report) -> None:
    """Training losses of the experts and of the dense model."""
    for expert, curve in report["curves"]["experts"].items():
        if curve:
            steps, losses = zip(*curve, strict=True)
            colour = expert_colour(int(expert))
            ax.plot(steps, losses, color=colour, linewidth=1.6, label=f"expert {expert}")
    if report["curves"]["dense"]:
        steps, losses = zip(*report["curves"]["dense"], strict=True)
        ax.plot(steps, losses, color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label="dense")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("training loss, nats per token")
    ax.legend(loc="upper right")
    quiet(ax)


def draw_router_losses(ax: Axes, report: Report) -> None:
    """The routers' mean loss on their share of each round."""
    for expert in range(report["mixture"]["experts"]):
        rows = [
            (row["round"], row["router_loss"][expert])
            for row in report["rounds"]
            if row["router_loss"] and row["router_loss"][expert] is not None
        ]
        if rows:
            numbers, losses = zip(*rows, strict=True)
            ax.plot(numbers, losses, color=expert_colour(expert), linewidth=1.6)
    ax.set_xlabel("round of EM")
    ax.set_ylabel("router loss, nats per token")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(ax)


def draw_load(ax: Axes, report: Report) -> None:
    """Sequences of each round by expert."""
    experts = report["mixture"]["experts"]
    numbers = [row["round"] for row in report["rounds"]]
    bottom = np.zeros(len(numbers))
    for expert in range(experts):
        load = np.array([row["load"][expert] for row in report["rounds"]], dtype=float)
        ax.bar(numbers, load, bottom=bottom, color=expert_colour(expert), width=0.86, linewidth=0)
        bottom += load
    ax.set_xlabel("round of EM")
    ax.set_ylabel("sequences")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    quiet(ax)


def draw_balance(displaced: Axes, excess: Axes, report: Report) -> None:
    """What the balance costs per round: who was displaced, and by how much."""
    rows = [row for row in report["rounds"] if row["round"] > 1]  # the first is at random
    numbers = [row["round"] for row in rows]
    series = (
        (displaced, [100 * row["displaced_fraction"] for row in rows], "displaced, % of sequences"),
        (excess, [row["excess_nats"] for row in rows], "excess, nats per sequence"),
    )
    for ax, values, label in series:
        ax.plot(numbers, values, color=ACCENT, linewidth=1.6)
        ax.set_ylim(0, max([*values, 0.1]) * 1.15)
        ax.set_xlabel("round of EM")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        quiet(ax)


def byte_bars(report: Report) -> list[tuple[str, float, str]]:
    """Label, bytes per trained token and colour, the dearest first."""
    moved = report["bytes"]
    formulas, measured = moved["formulas_per_trained_token"], moved["per_trained_token"]
    bars = [(FORMULA_NAMES[name], value, DENSE) for name, value in formulas.items()]
    bars += [
        ("this run: coordination", measured.get("coordination", 0.0), ACCENT),
        ("this run: collected experts", measured.get("weights", 0.0), ACCENT),
        ("the text, if every node fetched it", measured.get("data", 0.0), GRID),
    ]
    return sorted((bar for bar in bars if bar[1] > 0), key=lambda bar: -bar[1])


def draw_bytes(ax: Axes, report: Report) -> None:
    """Bytes per node and trained token, on a log scale."""
    bars = byte_bars(report)
    places = [-i for i in range(len(bars))]
    low = min(value for _, value, _ in bars) / 3
    ax.barh(
        places, [value - low for _, value, _ in bars], left=low, color=[c for *_, c in bars],
        height=0.62,
    )  # fmt: skip
    for place, (_, value, _) in zip(places, bars, strict=True):
        ax.text(value * 1.15, place, short(value), va="center", fontsize=9, color=INK)
    ax.set_xscale("log")
    ax.set_xlim(low, max(value for _, value, _ in bars) * 6)
    ax.set_yticks(places, [label for label, *_ in bars])
    for tick in ax.get_yticklabels():
        tick.set_color(INK)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("bytes per node and trained token (log scale)")
    ax.spines["left"].set_visible(False)
    quiet(ax, "x")
    ax.tick_params(which="minor", length=0)


def draw_perplexities(ax: Axes, report: Report) -> None:
    """Held-out suffix perplexity by domain, mixture and dense model."""
    rows = [row for row in report["domains"] if row["suffix_ppl"] and row["dense_suffix_ppl"]]
    rows.append({"domain": "all text", **_overall(report)})
    for place, row in enumerate(rows):
        ours, theirs = row["suffix_ppl"], row["dense_suffix_ppl"]
        ax.plot([ours, theirs], [-place, -place], color=GRID, linewidth=3, zorder=1)
        ax.scatter([theirs], [-place], s=48, color=DENSE, zorder=2)
        ax.scatter([ours], [-place], s=48, color=ACCENT, zorder=3)
        ax.annotate(
            f"{ours / theirs:.2f}",
            (max(ours, theirs), -place),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            weight="bold" if place == len(rows) - 1 else "normal",
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.12)
    ax.set_yticks([-p for p in range(len(rows))], [plain(row["domain"]) for row in rows])
    for tick in ax.get_yticklabels():
        tick.set_color(INK)
    ax.set_xlabel("suffix perplexity on held-out text (log scale); beside it the ratio")
    handles = [Patch(color=ACCENT, label="mixture"), Patch(color=DENSE, label="dense")]
    ax.legend(handles=handles, loc="lower right", handlelength=0.9)
    ax.spines["left"].set_visible(False)
    quiet(ax, "x")
    ax.tick_params(which="minor", length=0)


def draw_timeline(ax: Axes, report: Report) -> None:
    """What happened when."""
    rows = report["timeline"]
    ours = {Step.ROUTING, Step.SHARDING, Step.TRAINING, Step.EVALUATING}
    end = max((row["end_s"] for row in rows), default=1.0)
    for place, row in enumerate(rows):
        seconds = row["end_s"] - row["start_s"]
        colour = ACCENT if row["name"] in ours else DENSE
        ax.barh(-place, max(seconds, end / 400), left=row["start_s"], height=0.62, color=colour)
        ax.text(
            row["end_s"] + end / 120, -place, f"{seconds:.0f} s" if seconds >= 1 else "< 1 s",
            va="center", fontsize=9, color=INK,
        )  # fmt: skip
    ax.set_yticks([-p for p in range(len(rows))], [row["name"] for row in rows])
    for tick in ax.get_yticklabels():
        tick.set_color(INK)
    ax.set_xlim(0, end * 1.08)
    ax.set_xlabel("seconds since the start; coloured: phases of the run")
    ax.spines["left"].set_visible(False)
    quiet(ax, "x")


def short(value: float) -> str:
    """A figure with three digits: 1,540 or 0.031."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else "< 0.001"


def _overall(report: Report) -> dict[str, Any]:
    return {
        "suffix_ppl": report["mixture"]["suffix_ppl"],
        "dense_suffix_ppl": report["dense"]["suffix_ppl"],
    }


def plain(name: str) -> str:
    """A label for people."""
    return name.replace("_", " ")
