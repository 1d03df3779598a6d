"""The run's status for people, once or live; tables of invitations and of the audit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from smalltalk_coordinator import seat_table
from smalltalk_fed.host.audit import CHECKS, AuditReport

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
    head.append(f"{_where(status)}, {status['experts']} experts; ")
    head.append(
        f"units: {units['finished']} done, {units['leased']} in work, {units['open']} open\n"
    )
    if not status.get("serving", True):
        head.append("no coordinator is serving this run now\n", style="yellow")
    parts: list[RenderableType] = [head]
    for node in status["nodes"]:
        if node["two_places"]:
            where = f"{node['node_id']} is in two places"
            head.append(f"{where}; unless its operator knows of both, revoke it\n", style="red")
    if status["nodes"]:
        parts.append(_nodes(status["nodes"]))
    else:
        parts.append(Text("no nodes yet; `smalltalk-coordinator invite` prints a token for one"))
    if "seats" in status:
        parts += seat_table.parts(status)
    else:
        parts.append(Text(_audits(status)))
    parts.append(Text(_bytes(status["bytes"])))
    result = status.get("evaluation")
    if result and result["suffix_ppl"] is not None:
        parts.append(Text(f"held-out perplexity after the prefix: {result['suffix_ppl']:.2f}"))
    for refused in status.get("refused", ()):
        parts.append(Text(_refused(refused), style="yellow"))
    for gone in status.get("withdrawn", ()):
        parts.append(Text(_withdrawn(gone)))
    for expert, nodes in (status.get("serving_experts") or {}).items():
        parts.append(Text(f"expert {expert} answers at {', '.join(nodes)}"))
    if status.get("mixture"):
        parts.append(Text(f"the mixture is in {status['mixture']}"))
    return Group(*parts)


def _where(status: Status) -> str:
    if "seats" in status:
        return f"block {status['block']} of {status['blocks']}, {len(status['seats'])} seats"
    return f"round {status['round']} of {status['rounds']}"


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
    if node["quarantined"]:
        return "quarantined"
    if node["present"]:
        return "working" if node["unit"] else "waiting"
    if node["seen_s_ago"] is None:
        return "away"
    return f"silent for {node['seen_s_ago']:.0f} s"


def _withdrawn(gone: Status) -> str:
    whose = f" of {gone['node_id']}" if gone["node_id"] else ""
    return f"expert {gone['expert']}{whose} left the mixture, by its {gone['by']}: {gone['reason']}"


def _refused(refused: Status) -> str:
    if refused["dropped_for_s"]:
        return (
            f"{refused['caller']} called too often; not heard for {refused['dropped_for_s']:.0f} s"
        )
    return f"{refused['caller']} calls too often; {refused['refused']} calls refused"


def _audits(status: Status) -> str:
    audits = status["audits"]
    line = (
        f"audits: {audits['good']} good, {audits['bad']} bad, {audits['waived']} waived, "
        f"{audits['open']} open"
    )
    if audits["note"]:
        line += f"; {audits['note']}"
    for node in status["nodes"]:
        if node["quarantined"]:
            line += f"\n{node['node_id']} is quarantined: {node['quarantined']}"
    return line


def _bytes(totals: Status) -> str:
    def mb(name: str) -> str:
        return f"{(totals[name + '_up'] + totals[name + '_down']) / 1e6:.2f} MB"

    return f"travelled: coordination {mb('coordination')}, weights {mb('weights')}"


def show_invites(invites: list[Status], names: dict[str, str]) -> None:
    """Print invitations; `names` are the nodes' by their ids."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("invitation", "name", "uses left", "until", "used by"):
        table.add_column(title, justify="right" if title == "uses left" else "left")
    for invite in invites:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(invite["expires_at"]))
        used_by = ", ".join(f"{node} ('{names[node]}')" for node in invite["used_by"])
        left = f"{invite['uses_left']} of {invite['uses']}"
        table.add_row(
            invite["id"], Text(invite["name"]), left, until + _void(invite), used_by or "nobody yet"
        )
    Console().print(table if invites else "no invitations yet; `invite` without --list makes one")


def _void(invite: Status) -> str:
    if invite["cancelled"]:
        return ", cancelled"
    return ", over" if invite["expired"] else ""


def show_audit(report: AuditReport) -> None:
    """Print what the audit looked at, and its verdict if it is a good one."""
    console, counts = Console(), report.counts
    not_kept = ", ".join(f"{n} {name}" for name, n in sorted(report.blobs_not_kept.items()))
    passes = f"{report.passes_whole} whole passes and {report.pass_sequences:,} sequences of one"
    looked_at = {
        "shares": f"{counts.get('rounds', 0)} rounds: {passes}",
        "routers": f"{counts.get('results', 0)} results, {counts.get('taken_back', 0)} taken back",
        "segments": f"{counts.get('segments', 0)} segments",
        "experts": f"{counts.get('experts', 0)} finished, {counts.get('collected', 0)} on the way",
        "audits": ", ".join(f"{counts.get(name, 0)} {name}" for name in ("good", "bad", "waived")),
        "signatures": f"{counts.get('signatures', 0)} good",
        "blobs": f"{report.blobs_kept} kept; not kept: {not_kept or 'none'}",
        "journal": f"{report.events} events, phase {report.phase}",
    }
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("audit of", "looked at", "wrong"):
        table.add_column(title, justify="right" if title == "wrong" else "left")
    for check in CHECKS:
        table.add_row(check, looked_at[check], str(report.wrong.get(check, 0)))
    console.print(table)
    for finding in report.findings:
        console.print(Text(f"{finding.check}: {finding.where}: {finding.what}", style="red"))
    if report.proved:
        console.print(Text(report.verdict(), style="green"))
