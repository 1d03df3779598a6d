"""What a node's results were used for, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smalltalk_fed.host.trace import NodeTrace, TracedResult


def show(found: NodeTrace) -> None:
    """Print the trace."""
    console = Console()
    head = Text(f"{found.node_id} ({found.name})", style="bold")
    if found.quarantined:
        head.append(f" is quarantined: {found.quarantined}", style="red")
    if found.revoked:
        head.append(f" was shut out: {found.revoked}", style="red")
    console.print(head)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("result or opinion", "found", "taken back"):
        table.add_column(title)
    for result in (*found.results, *found.opinions):
        table.add_row(result.unit_id, _found(result), result.taken_back)
    console.print(table)
    uses = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("what rests on it", "through"):
        uses.add_column(title)
    for use in found.uses:
        uses.add_row(use.what, use.through)
    console.print(uses if found.uses else Text("nothing rests on it"))


def _found(result: TracedResult) -> str:
    return result.verdict or "not looked at"
