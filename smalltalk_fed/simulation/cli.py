"""The command `smalltalk simulate`: options, progress, the report or what a search found.

Rules: results go to standard output, progress to standard error. A broken rule is a bug of
ours: exit code 1, with the line that replays it.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from smalltalk_fed.errors import UserError

if TYPE_CHECKING:
    from smalltalk_fed.simulation.coordinator_host import CoordinatorHost
    from smalltalk_fed.simulation.report import Report
    from smalltalk_fed.simulation.scenario import Scenario
    from smalltalk_fed.simulation.search import Case, Found
    from smalltalk_fed.simulation.world import World

_DAY_S = 86400.0
_BROKEN = 1
_TABLE_WIDTH = 110


class Kind(StrEnum):
    """What is simulated."""

    VOLUNTEERS = "volunteers"
    FAULTS = "faults"


class Lie(StrEnum):
    """How machines lie."""

    MIXED = "mixed"
    ODD = "odd"
    HIDDEN = "hidden"
    ACCUSE = "accuse"
    APPROVE = "approve"


def simulate(
    nodes: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Machines; 1000, or as drawn.", show_default=False),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Experts; 16, or as drawn.", show_default=False),
    ] = None,
    days: Annotated[
        float, typer.Option(min=0.1, help="Virtual days that the run should take, about.")
    ] = 7.0,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything that happens.")] = 1,
    kind: Annotated[
        Kind,
        typer.Option(
            "--scenario", help="volunteers: weeks, home machines; faults: small, much goes wrong."
        ),
    ] = Kind.VOLUNTEERS,
    paper: Annotated[
        bool,
        typer.Option("--paper/--no-paper", help="Also run the paper's rounds with barriers."),
    ] = True,
    liars: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the machines that lie.")
    ] = 0.0,
    lie: Annotated[
        Lie,
        typer.Option(
            help="odd: blocks that look odd; hidden: what only an audit finds; accuse, approve: "
            "wrong opinions."
        ),
    ] = Lie.MIXED,
    honest_units: Annotated[
        int, typer.Option(min=0, help="Units that a liar does well before it lies.")
    ] = 0,
    faults: Annotated[
        str, typer.Option(help="With --scenario faults: only these of the seed's, as 0,3 or none.")
    ] = "",
    calm: Annotated[
        bool, typer.Option("--calm", help="With --scenario faults: nothing is lost on the way.")
    ] = False,
    search: Annotated[
        int, typer.Option(min=0, help="Try so many seeds of --scenario faults, from --seed on.")
    ] = 0,
    processes: Annotated[
        int, typer.Option(min=0, help="Processes that search; 0: one a processor.")
    ] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="Write what happened to this file.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the real coordinator and node sessions in a simulated world of unreliable machines."""
    from smalltalk_fed.simulation.liars import Liars
    from smalltalk_fed.simulation.scenario import volunteers
    from smalltalk_fed.simulation.search import Case

    if search:
        _search(seed, search, processes or os.cpu_count() or 1, as_json)
        return
    if kind is Kind.FAULTS:
        case = Case(seed, nodes, experts, _numbers(faults), calm)
        reports = [_run(case.scenario(), trace)]
        assumed = {str(i): str(f) for i, f in enumerate(case.scenario().faults)}
    else:
        size = (nodes or 1000, experts or 16, days, seed)
        told = Liars(liars, lie.value, honest_units)
        scenario = volunteers(*size, liars=told)
        assumed = scenario.assumed
        reports = [_run(scenario, trace)]
        if paper:
            reports.append(_run(volunteers(*size, policy="paper", liars=told), None))
    _print(reports, assumed, as_json)
    if reports[0].violations:
        raise typer.Exit(_BROKEN)


def _run(scenario: Scenario, trace: Path | None) -> Report:
    from smalltalk_fed.simulation.simulate import simulate as run
    from smalltalk_fed.simulation.world import Trace

    with _bar("virtual day") as bar:
        title = f"{scenario.policy} policies, seed {scenario.seed}"
        task = bar.add_task(title, total=None, detail="")

        def show(world: World, host: CoordinatorHost) -> None:
            _show(bar, task, world, host)

        if trace is None:
            return run(scenario, on_progress=show)
        with trace.open("w") as file:
            return run(scenario, on_progress=show, trace=Trace(file.write))


def _show(bar: Progress, task: TaskID, world: World, host: CoordinatorHost) -> None:
    state = host.coordinator.state
    rate = world.events / max(1e-9, bar.tasks[task].elapsed or 0.0)
    done = f"{len(state.finished)} units" if state.phase.value != "routing" else ""
    where = f"round {state.round}" if state.phase.value == "routing" else done
    bar.update(
        task,
        detail=f"{world.elapsed_s / _DAY_S:.1f}, {state.phase}, {where}, {rate:,.0f} events/s",
    )


def _search(seed: int, count: int, processes: int, as_json: bool) -> None:
    from smalltalk_fed.simulation.search import search

    with _bar("seeds") as bar:
        task = bar.add_task(f"searching from seed {seed}", total=count, detail=f"of {count:,}")
        found = search(
            seed,
            count,
            processes=processes,
            on_progress=lambda done: bar.update(task, completed=done, detail=f"{done} of {count}"),
        )
    if found is None:
        message = f"{count:,} seeds from {seed} on break no rule"
        typer.echo(json.dumps({"seeds": count, "found": None}) if as_json else message)
        return
    if as_json:
        typer.echo(json.dumps({"seeds": count, "found": _found_json(found)}, indent=1))
    else:
        _print_found(found)
    raise typer.Exit(_BROKEN)


def _found_json(found: Found) -> dict[str, object]:
    def one(case: Case, report: Report) -> dict[str, object]:
        return {"replay": case.command_line(), "violations": report.violations}

    return {
        "rule": found.report.broken_rule,
        **one(found.case, found.report),
        "shrunk": one(found.shrunk, found.shrunk_report),
    }


def _print_found(found: Found) -> None:
    typer.echo(f"seed {found.case.seed} breaks a rule: {found.report.violations[0]}")
    typer.echo(f"  {found.case.command_line()}")
    typer.echo(f"shrunk: {found.shrunk_report.violations[0]}")
    for fault in found.faults:
        typer.echo(f"  {fault}")
    typer.echo(f"  {found.shrunk.command_line()}")


def _print(reports: list[Report], assumed: dict[str, str], as_json: bool) -> None:
    if as_json:
        first = reports[0].to_json()
        second = reports[1].to_json() if len(reports) > 1 else None
        typer.echo(json.dumps({**first, "paper": second, "assumed": assumed}, indent=1))
        return
    from smalltalk_fed.simulation.table import make_table

    console = Console(highlight=False)
    console.width = max(console.width, _TABLE_WIDTH)  # wide enough, also for a file
    for name, text in assumed.items():
        console.print(f"[dim]{name}: {text}[/dim]")
    console.print(make_table(reports))


def _numbers(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--faults {text} is not a list of numbers; give such as 0,3.") from None


def _bar(what: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn(f"{what} {{task.fields[detail]}}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
