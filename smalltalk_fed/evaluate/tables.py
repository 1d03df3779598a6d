"""What `smalltalk evaluate` and `generate --explain` show people: tables, no decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from smalltalk_fed.evaluate.generate import Choice
    from smalltalk_fed.evaluate.report import EvaluationReport


def print_report(report: EvaluationReport) -> None:
    """To standard output."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "mixture", "dense", "ratio"):
        table.add_column(title, justify="left" if not title else "right")
    ours, theirs = report.mixture, report.dense
    for name, title, digits in (
        ("suffix_ppl", f"suffix perplexity (after {report.prefix_tokens} tokens)", 2),
        ("all_ppl", "perplexity of all tokens", 2),
        ("bits_per_byte", "bits per byte", 3),
    ):
        mine = getattr(ours, name)
        if mine is None:
            continue
        other = getattr(theirs, name) if theirs else None
        table.add_row(
            title,
            f"{mine:.{digits}f}",
            f"{other:.{digits}f}" if other else "",
            f"{mine / other:.3f}" if other else "",
        )
    for value, title in (
        (report.oracle_suffix_ppl, "suffix perplexity, best expert each"),
        (report.random_suffix_ppl, "suffix perplexity, experts at random"),
    ):
        if value is not None:
            ratio = f"{value / theirs.suffix_ppl:.3f}" if theirs else ""
            table.add_row(title, f"{value:.2f}", "", ratio)
    console.print(table)
    experts = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    titles = ["expert", "sequences", "suffix perplexity", "dense there", "domains"]
    for title in titles:
        experts.add_column(title, justify="left" if title == "domains" else "right")
    for row in report.experts:
        most = sorted(row.domains.items(), key=lambda item: -item[1])[:4]
        experts.add_row(
            str(row.expert),
            f"{row.sequences:,}",
            "" if row.suffix_ppl is None else f"{row.suffix_ppl:.2f}",
            "" if row.dense_suffix_ppl is None else f"{row.dense_suffix_ppl:.2f}",
            ", ".join(f"{name} {count}" for name, count in most),
        )
    console.print("")
    console.print(experts)
    console.print(f"[dim]{report.sequences:,} sequences of {report.sequence_tokens} tokens[/dim]")


def print_choice(choice: Choice) -> None:
    """To standard error, so that the text alone is the output."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("router", "score, nats", "price", "score - price", ""):
        table.add_column(title, justify="right" if title else "left")
    rows: list[Any] = choice.rows()
    for row in rows:
        table.add_row(
            str(row["expert"]),
            "" if row["score"] is None else f"{row['score']:.2f}",
            f"{row['price']:.2f}",
            "" if row["worth"] is None else f"{row['worth']:.2f}",
            row["note"],
        )
    console.print(table)
    console.print(f"[dim]{choice.why}[/dim]\n")
