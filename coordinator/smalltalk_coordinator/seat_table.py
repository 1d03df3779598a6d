"""A private run's seats for people: who sits where, whom the run waits for, what was counted."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

COLUMNS = ("seat", "experts", "node", "train", "held out", "weights", "goes elsewhere")
MATRIX_EXPERTS = 16  # more are not for a terminal's width
NUMBERS = ("seat", "train", "held out", "goes elsewhere")


def parts(status: dict[str, Any]) -> list[RenderableType]:
    """The table of the seats, and the sentences below it."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in COLUMNS:
        table.add_column(title, justify="right" if title in NUMBERS else "left")
    for row in status["seats"]:
        away = row["away"]
        table.add_row(
            str(row["seat"]),
            _range(row["experts"]) + _left(row),
            Text(row["name"] or "free", style="" if row["name"] else "yellow"),
            f"{row['train_sequences']:,}" if row["name"] else "",
            f"{row['heldout_sequences']:,}" if row["name"] else "",
            row["share"] if row["name"] else "",
            "" if away is None else f"{away:.0%}",
        )
    found: list[RenderableType] = [table]
    if status["waiting_for"]:
        who = ", ".join(status["waiting_for"])
        found.append(Text(f"the run can't go on without {who}: not here now", style="yellow"))
    if status["prices"]:
        found.append(Text(_counts(status["prices"][-1])))
    rows = status.get("counts")
    if rows and len(rows[0]) <= MATRIX_EXPERTS:
        found.append(_matrix(rows, status["seats"]))
    return found


def _matrix(rows: list[list[int | None]], seats: list[dict[str, Any]]) -> Table:
    """What each silo's held-out text would go to, its own experts in bold."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("held out at")
    for expert in range(len(rows[0])):
        table.add_column(f"expert {expert}", justify="right")
    for row, seat in zip(rows, seats, strict=True):
        cells = [
            Text("-" if count is None else f"{count:,}", "bold" if e in seat["experts"] else "dim")
            for e, count in enumerate(row)
        ]
        table.add_row(Text(seat["name"] or ""), *cells)
    return table


def _counts(last: dict[str, Any]) -> str:
    """The run's health in one line: how much text other silos' experts would win."""
    line = (
        f"counts after block {last['block']}, the {last['turn'] + 1}. time: "
        f"{last['off_diagonal']:.1%} of the text would go to other silos, shares are off by "
        f"{last['share_error']:.1%}"
    )
    if last["silent_seats"]:
        line += f"; {last['silent_seats']} seats show no count"
    return line


def _left(row: dict[str, Any]) -> str:
    """Which of the seat's experts were withdrawn."""
    gone = row.get("withdrawn", [])
    if not gone:
        return ""
    return " (left)" if gone == row["experts"] else f" (without {', '.join(map(str, gone))})"


def _range(experts: list[int]) -> str:
    return f"{experts[0]}" if len(experts) == 1 else f"{experts[0]}-{experts[-1]}"
