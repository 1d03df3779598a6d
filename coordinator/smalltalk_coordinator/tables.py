"""The run's status for people: a few lines and a table, once or live."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

Status = dict[str, Any]


def show(status: Status) -> None:
    """Print the run once."""
    Console().print(render(status))


@contextlib.contextmanager
def live() -> Iterator[Callable[[Status], None]]:
    """A table that is drawn over itself."""
    with Live(console=Console(), auto_refresh=False, screen=False) as view:
        yield lambda status: view.update(render(status), refresh=True)


def render(status: Status) -> RenderableType:
    """The run as rich text."""
    units = status["units"]
    head = Text()
    head.append(f"{status['run_id']}  ", style="bold")
    done = status["phase"] == "finished"
    head.append(status["phase"], style="bold green" if done else "bold")
    head.append(f"  {status['reason']}\n")
    head.append(f"round {status['round']} of {status['rounds']}, {status['experts']} experts; ")
    head.append(
        f"units: {units['finished']} done, {units['leased']} in work, {units['open']} open\n"
    )
    if not status.get("serving", True):
        head.append("no coordinator is serving this run now\n", style="yellow")
    parts: list[RenderableType] = [head]
    if status["nodes"]:
        parts.append(_nodes(status["nodes"]))
    else:
        parts.append(Text("no nodes yet; `smalltalk-coordinator invite` prints a token for one"))
    parts.append(Text(_bytes(status["bytes"])))
    result = status.get("evaluation")
    if result:
        parts.append(Text(f"held-out perplexity after the prefix: {result['suffix_ppl']:.2f}"))
    if status.get("mixture"):
        parts.append(Text(f"the mixture is in {status['mixture']}"))
    return Group(*parts)


def _nodes(nodes: list[Status]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("node", "name", "state", "unit", "done", "tokens/s", "loss"):
        table.add_column(
            title, justify="right" if title in ("done", "tokens/s", "loss") else "left"
        )
    for node in nodes:
        figures = node["figures"]
        table.add_row(
            node["node_id"],
            node["name"],
            _state(node),
            (node["unit"] or "") + (" (copy)" if node["copy"] else ""),
            f"{node['fraction']:.0%}" if node["unit"] else "",
            f"{figures['tokens_per_s']:,.0f}" if figures.get("tokens_per_s") else "",
            f"{figures['loss']:.3f}" if figures.get("loss") else "",
        )
    return table


def _state(node: Status) -> str:
    if node["revoked"]:
        return "revoked"
    if node["present"]:
        return "working" if node["unit"] else "waiting"
    if node["seen_s_ago"] is None:
        return "away"
    return f"silent for {node['seen_s_ago']:.0f} s"


def _bytes(totals: Status) -> str:
    def mb(name: str) -> str:
        return f"{(totals[name + '_up'] + totals[name + '_down']) / 1e6:.2f} MB"

    return f"travelled: coordination {mb('coordination')}, weights {mb('weights')}"
