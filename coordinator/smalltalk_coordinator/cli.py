"""`smalltalk-coordinator`: the organiser's command. Wires, decides nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from smalltalk_coordinator import expert_commands, invitations, tables, trace_table
from smalltalk_coordinator.asking import ask, status_of
from smalltalk_fed.config.loading import load_config
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import OurError, UserError
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.backup import backup as make_backup
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.export import export_assignments
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.trace import trace_node
from smalltalk_fed.telemetry import logs
from smalltalk_fed.telemetry.console import EXIT_CODES, program, run_program

NAME = "smalltalk-coordinator"
RUN_ADDRESS, ENROL_ADDRESS = "127.0.0.1:7070", "127.0.0.1:7071"
app = program(NAME, "Organise a run: invite nodes, hand out work, keep the journal.")

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog=EXIT_CODES)
def init(
    folder: Dir,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus folder made by `smalltalk prepare`.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help='In the place of a corpus, for run.regime = "private": tokenizer.json, or a '
            "folder with one."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="run.toml; without it, the defaults.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key: --set run.seed=2")
    ] = None,
    run_address: Annotated[
        list[str] | None,
        typer.Option(
            help="host:port for nodes, as they dial it; again for a further one.",
            show_default=RUN_ADDRESS,
        ),
    ] = None,
    enrol_address: Annotated[
        list[str] | None,
        typer.Option(
            help="host:port for newcomers, as they dial it; one for each --run-address.",
            show_default=ENROL_ADDRESS,
        ),
    ] = None,
) -> None:
    """Make a run folder: manifest, certificate authority, keys."""
    parsed = load_config(config, settings or ())
    where = Addresses.of(run_address or [RUN_ADDRESS], enrol_address or [ENROL_ADDRESS])
    text = config.read_text(encoding="utf-8") if config else "# the defaults\n"
    text += "".join(f"# --set {setting}\n" for setting in settings or ())
    given = [path for path in (corpus, tokenizer) if path is not None]
    if len(given) != 1 or (tokenizer and parsed.run.regime != "private"):
        raise UserError(
            "a run is made with --corpus; where run.regime is 'private', that is its public text, "
            "or --tokenizer stands in its place."
        )
    run = RunFolder.create(folder, parsed, text, given[0], where, SystemClock().now())
    typer.echo(f"run {run.manifest.run_id} is in {folder}; next:", err=True)
    typer.echo(f"  {NAME} serve {folder}\n  {NAME} invite {folder}", err=True)


@app.command(epilog=EXIT_CODES)
def serve(
    folder: Dir,
    log_json: Annotated[bool, typer.Option(help="Log JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Serve the run until Ctrl-C; a restarted one goes on where it was."""
    from smalltalk_coordinator.memory import one_heap
    from smalltalk_coordinator.server import serve as serve_run

    one_heap()
    logs.set_up(as_json=log_json, verbose=verbose)
    run = RunFolder.open(folder)
    where = "; ".join(f"nodes at {a}, newcomers at {b}" for a, b in run.addresses.pairs)
    with run.locked():
        asyncio.run(serve_run(run, lambda: typer.echo(f"serving {run.manifest.run_id}: {where}")))


app.command(epilog=EXIT_CODES)(invitations.invite)


@app.command(epilog=EXIT_CODES)
def status(
    folder: Dir,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option(min=0.2, help="Seconds between refreshes.")] = 2.0,
    audit_data: Annotated[
        bool,
        typer.Option(
            "--audit-data",
            help="Prove from the folder alone that no sequence is trained on twice in a pass or "
            "skipped; exit code 1 if not.",
        ),
    ] = False,
) -> None:
    """Show the run: phase, rounds, nodes, bytes."""
    run = RunFolder.open(folder)
    if audit_data:
        _audit(run, as_json)
        return
    if as_json and not watch:
        typer.echo(json.dumps(status_of(run)))
        return
    if not watch:
        tables.show(status_of(run))
        return
    with tables.live() as refresh:
        while True:
            current = status_of(run)
            if as_json:
                sys.stdout.write(json.dumps(current) + "\n")
                sys.stdout.flush()
            else:
                refresh(current)
            time.sleep(every_s)


@app.command(epilog=EXIT_CODES)
def revoke(
    folder: Dir,
    node: Annotated[str, typer.Argument(help="The node's id, as in `status`.")],
    reason: Annotated[str, typer.Option(help="What its operator is told.")] = "by the operator",
) -> None:
    """Shut a node out for good; its work goes to others."""
    typer.echo(ask(RunFolder.open(folder), msg.Revoke(node, reason)))


app.command(epilog=EXIT_CODES)(invitations.addresses)


@app.command(epilog=EXIT_CODES)
def readmit(
    folder: Dir,
    node: Annotated[str, typer.Argument(help="The node's id, as in `status`.")],
) -> None:
    """Let a quarantined node work again, as a newcomer whose first units are checked."""
    typer.echo(ask(RunFolder.open(folder), msg.Readmit(node)))


app.command(epilog=EXIT_CODES)(expert_commands.withdraw)
app.command(epilog=EXIT_CODES)(expert_commands.relay)


@app.command(epilog=EXIT_CODES)
def trace(
    folder: Dir,
    node: Annotated[str, typer.Argument(help="The node's id, as in `status`.")],
    as_json: AsJson = False,
) -> None:
    """List what a node's results were used for, out of the journal."""
    found = trace_node(RunFolder.open(folder), node)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        trace_table.show(found)


@app.command(epilog=EXIT_CODES)
def pause(
    folder: Dir,
    reason: Annotated[str, typer.Option(help="Shown to all.")] = "paused by the operator",
) -> None:
    """Hand out no more work; units in work may be finished."""
    typer.echo(ask(RunFolder.open(folder), msg.Pause(reason)))


@app.command(epilog=EXIT_CODES)
def resume(folder: Dir) -> None:
    """Go on after `pause`."""
    typer.echo(ask(RunFolder.open(folder), msg.Resume()))


@app.command(epilog=EXIT_CODES)
def export(
    folder: Dir,
    assignments: Annotated[Path, typer.Option(help="Where to write the .npz file.")],
) -> None:
    """Write which sequence went to which expert, round by round, as arrays."""
    count = export_assignments(RunFolder.open(folder), assignments)
    typer.echo(f"{count} rounds and the segments are in {assignments}", err=True)


@app.command(epilog=EXIT_CODES)
def backup(
    folder: Dir,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
    as_json: AsJson = False,
) -> None:
    """Copy the run as it is now, serving or not; `serve TARGET` continues the copy."""
    report = make_backup(RunFolder.open(folder), target)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    typer.echo(
        f"{report.events} events and {report.blobs} blobs ({report.blob_bytes / 1e6:.1f} MB) "
        f"are in {target}; to go on from there: {NAME} serve {target}",
        err=True,
    )


def _audit(run: RunFolder, as_json: bool) -> None:
    report = audit(run)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        tables.show_audit(report)
    if not report.proved:
        raise OurError(report.verdict())


def main() -> None:
    """Entry point."""
    sys.exit(run_program(app, NAME))


if __name__ == "__main__":
    main()
