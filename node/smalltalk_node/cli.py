"""`smalltalk-node`: the node operator's command. Wires, decides nothing."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

# Before anything imports torch: idle threads must sleep, not spin. Before anything imports
# grpc: its C core would write handshakes that failed to stderr; we say what they mean.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from smalltalk_fed import __version__
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.telemetry import logs
from smalltalk_fed.telemetry.console import EXIT_CODES, program, run_program
from smalltalk_fed.wire.egress import EgressRow, egress_rows
from smalltalk_fed.wire.token import decode_token
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.identity import DEFAULT_FOLDER, NodeFolder
from smalltalk_fed.worksite.limits import Limits
from smalltalk_fed.worksite.machine import WORKER_THREAD
from smalltalk_node import expert_commands

NAME = "smalltalk-node"
app = program(NAME, "Do work for a run on this machine, and see what leaves it.")

Dir = Annotated[
    Path | None, typer.Option("--dir", help="The node's folder.", show_default=str(DEFAULT_FOLDER))
]
Corpus = Annotated[
    Path | None,
    typer.Option(
        help="Corpus folder made by `smalltalk prepare`, or, in a private run, this machine's own "
        "text (files or a folder of them); remembered after the first run."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    explain_egress: Annotated[
        bool,
        typer.Option(
            "--explain-egress",
            help="Print every field that can leave this machine, with its size, and exit.",
        ),
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="With --explain-egress: the node's folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --explain-egress: JSON.")] = False,
) -> None:
    """Do work for a run on this machine, and see what leaves it."""
    if version:
        typer.echo(f"smalltalk-fed {__version__}")
        raise typer.Exit
    if explain_egress:
        _explain_egress(folder, as_json)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(epilog=EXIT_CODES)
def join(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The line that `invite` printed.")],
    folder: Dir = None,
    name: Annotated[
        str | None, typer.Option(help="This machine's name in the run.", show_default="host name")
    ] = None,
) -> None:
    """Enrol this machine in a run; once."""
    from smalltalk_node.joining import enrol

    decoded = decode_token(token)
    place = NodeFolder.open(folder)
    with place.locked():
        identity = enrol(place, decoded, name or machine.machine_name())
    where = f" --dir {folder}" if folder else ""
    typer.echo(f"enrolled as {identity.node_id} ('{identity.name}') in {place.path}; next:")
    typer.echo(f"  {NAME} run{where} --corpus CORPUS")


@app.command(epilog=EXIT_CODES)
def run(
    folder: Dir = None,
    corpus: Corpus = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="Threads; 0: as the run says, or torch's choice.")
    ] = 0,
    hours: Annotated[
        str | None,
        typer.Option(help="When to work, by local time: 22-7, or 9:30-12,14-18, or always."),
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, help="Most memory, in GB (10^9 bytes); 0: no limit.")
    ] = None,
    gpu_memory_gb: Annotated[
        float | None, typer.Option(min=0, help="Most memory of a GPU, in GB; 0: no limit.")
    ] = None,
    disk_gb: Annotated[
        float | None,
        typer.Option(min=0, help="Most disk, for inputs, checkpoints and experts; 0: no limit."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Part of the time to compute, such as 0.5; 1: all."),
    ] = None,
    up_mbit: Annotated[
        float | None, typer.Option(min=0, help="Fastest that uploads go, Mbit/s; 0: no limit.")
    ] = None,
    model_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of a model that the run may begin its experts from."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="In a private run, who may have the experts of this machine's text: never, "
            "operator, public.",
            show_default="never",
        ),
    ] = None,
    epsilon_at_most: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="In a private run, the largest epsilon that its routers, and its counts, may cost "
            "a sequence of this text; 0: no limit.",
        ),
    ] = None,
    public: Annotated[
        Path | None,
        typer.Option(
            help="Corpus folder of a private run's public text, if it has some; remembered."
        ),
    ] = None,
    seat: Annotated[
        int, typer.Option(min=-1, help="In a private run, the seat to take; -1: any.")
    ] = -1,
    record_egress: Annotated[
        Path | None,
        typer.Option(help="Write down every message that leaves; see `egress`.", dir_okay=False),
    ] = None,
    log_json: Annotated[bool, typer.Option(help="Log JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Do work until the run ends or Ctrl-C; started again, it goes on.

    Hours, memory, disk, share, speed of uploads, epsilon and model folder are this machine's
    limits: remembered, never sent, and a run that needs more is refused. Whom --weights names is
    remembered and told to the coordinator.
    """
    from smalltalk_fed.worksite.guard import cap_process_memory
    from smalltalk_fed.worksite.hours import Hours, work_by_hours
    from smalltalk_node.program import Options, Program
    from smalltalk_node.recording import EgressRecorder

    logs.set_up(as_json=log_json, verbose=verbose)
    place = NodeFolder.open(folder)
    with place.locked():
        limits = Limits.load(place.path).changed(
            hours=hours,
            memory_gb=memory_gb,
            gpu_memory_gb=gpu_memory_gb,
            disk_gb=disk_gb,
            share=share,
            up_mbit=up_mbit,
            weights=weights,
            epsilon_at_most=epsilon_at_most,
            model_folder=None if model_folder is None else str(model_folder.absolute()),
        )
        if limits != Limits.load(place.path):
            limits.save(place.path)
        recorder = EgressRecorder(record_egress) if record_egress else None
        options = Options(corpus, device, threads, limits, recorder, seat, public)
        if not options.on_gpu:
            cap_process_memory(limits.memory_gb)
        reason = work_by_hours(Hours.parse(limits.hours), lambda: Program(place, options))
    typer.echo(reason)


app.command(epilog=EXIT_CODES)(expert_commands.serve_experts)
app.command(epilog=EXIT_CODES)(expert_commands.withdraw)


@app.command(epilog=EXIT_CODES)
def egress(
    record: Annotated[Path, typer.Argument(metavar="FILE", help="From `run --record-egress`.")],
    folder: Dir = None,
    find: Annotated[
        str | None, typer.Option(help="Also look for this text in all that left.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold what has left this machine against what --explain-egress declares.

    Ends with exit code 1 if anything else has left, or the text is found.
    """
    from smalltalk_node.egress import report

    report(record, _manifest(folder), find, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def doctor(folder: Dir = None, corpus: Corpus = None, as_json: AsJson = False) -> None:
    """Look at this machine, the corpus and the way to the coordinator.

    Ends with the exit code of the first thing that failed.
    """
    from smalltalk_node.doctor import examine

    findings = []
    console = Console()
    for finding in examine(NodeFolder.open(folder), corpus):
        findings.append(finding)
        if not as_json:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.verdict]
            console.print(f"[{colour}]{finding.verdict:<5}[/] {finding.check:<15}", end=" ")
            console.print(finding.text, markup=False, highlight=False)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    raise typer.Exit(next((f.exit_code for f in findings if f.exit_code), 0))


def _explain_egress(folder: Path | None, as_json: bool) -> None:
    """Print what can leave; with this run's sizes if this node has joined one."""
    allowed = Limits.load((folder or DEFAULT_FOLDER).expanduser()).weights
    rows = egress_rows(_manifest(folder), allowed)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    console = Console()
    for table in _egress_tables(rows):
        console.print(table)
    console.print(
        "Nothing else can leave: no corpus, no gradients, no activations, no optimizer states. "
        "What did leave is counted in metrics.jsonl and node-status.json of the node's folder; "
        "`run --record-egress FILE` keeps all of it, and `egress FILE` holds it against this list."
    )


def _manifest(folder: Path | None) -> RunManifest | None:
    """The manifest of the run that this node has joined, if it has."""
    stored = (folder or DEFAULT_FOLDER).expanduser() / "manifest.json"
    return RunManifest.from_bytes(stored.read_bytes()) if stored.exists() else None


def _egress_tables(rows: list[EgressRow]) -> list[Table]:
    tables: list[Table] = []
    for row in rows:
        title = "Outputs of work units, in PutBlob" if row.field.startswith("data: ") else row.call
        if not tables or tables[-1].title != title:
            columns = ("field", "what", "size")
            caption = None if title != row.call else row.when
            tables.append(Table(*columns, title=title, caption=caption, title_justify="left"))
        what = row.what if title == row.call else f"{row.what} ({row.when})"
        tables[-1].add_row(row.field.removeprefix("data: "), what, row.size)
    return tables


def main() -> None:
    """Entry point."""
    code = run_program(app, NAME)
    if any(thread.name == WORKER_THREAD for thread in threading.enumerate()):
        # In the middle of a long step, of a unit that nobody wants any more: torch aborts
        # when the interpreter is taken down under it.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
