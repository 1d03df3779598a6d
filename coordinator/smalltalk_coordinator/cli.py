"""`smalltalk-coordinator`: the organiser's command. Wires, decides nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from smalltalk_coordinator import tables, trace_table
from smalltalk_coordinator.operator_client import NotServing, OperatorClient
from smalltalk_fed.config.loading import load_config
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import OurError, UserError
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.backup import backup as make_backup
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.export import export_assignments
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.offline import decide_offline, status_offline
from smalltalk_fed.host.trace import trace_node
from smalltalk_fed.telemetry import logs
from smalltalk_fed.telemetry.console import EXIT_CODES, program, run_program
from smalltalk_fed.wire.token import (
    JoinToken,
    check_address,
    encode_token,
    new_secret,
    secret_sha256,
)

NAME = "smalltalk-coordinator"
app = program(NAME, "Organise a run: invite nodes, hand out work, keep the journal.")

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OperatorMessage = (
    msg.MakeInvite | msg.CancelInvite | msg.Revoke | msg.Readmit | msg.Pause | msg.Resume
)


@app.command(epilog=EXIT_CODES)
def init(
    folder: Dir,
    corpus: Annotated[Path, typer.Option(help="Corpus folder made by `smalltalk prepare`.")],
    config: Annotated[Path | None, typer.Option(help="run.toml; without it, the defaults.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key: --set run.seed=2")
    ] = None,
    run_address: Annotated[
        str, typer.Option(help="host:port for nodes, as they dial it.")
    ] = "127.0.0.1:7070",
    enrol_address: Annotated[
        str, typer.Option(help="host:port for newcomers, as they dial it.")
    ] = "127.0.0.1:7071",
) -> None:
    """Make a run folder: manifest, certificate authority, keys."""
    parsed = load_config(config, settings or ())
    addresses = Addresses(check_address(run_address), check_address(enrol_address))
    if run_address == enrol_address:
        raise UserError(f"both ports are {run_address}; give two different ones.")
    text = config.read_text(encoding="utf-8") if config else "# the defaults\n"
    text += "".join(f"# --set {setting}\n" for setting in settings or ())
    run = RunFolder.create(folder, parsed, text, corpus, addresses, SystemClock().now())
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
    where = f"nodes at {run.addresses.run}, newcomers at {run.addresses.enrolment}"
    with run.locked():
        asyncio.run(serve_run(run, lambda: typer.echo(f"serving {run.manifest.run_id}: {where}")))


@app.command(epilog=EXIT_CODES)
def invite(
    folder: Dir,
    uses: Annotated[int, typer.Option(min=1, help="How many machines may use it.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="Valid for so long.")] = 72.0,
    name: Annotated[str, typer.Option(help="A note for yourself.")] = "",
    cancel: Annotated[
        str, typer.Option(help="Void the invitation that begins so (see `status --json`).")
    ] = "",
) -> None:
    """Print a join token: one line for a node operator."""
    run = RunFolder.open(folder)
    if cancel:
        typer.echo(_do(run, msg.CancelInvite(cancel)))
        return
    secret, expires_at = new_secret(), SystemClock().now() + hours * 3600
    _do(run, msg.MakeInvite(secret_sha256(secret), expires_at, uses, name))
    token = JoinToken(
        run.addresses.run,
        run.addresses.enrolment,
        run.authority().certificate_der,
        secret,
        int(expires_at),
    )
    typer.echo(encode_token(token))


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
        typer.echo(json.dumps(_status(run)))
        return
    if not watch:
        tables.show(_status(run))
        return
    with tables.live() as refresh:
        while True:
            current = _status(run)
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
    typer.echo(_do(RunFolder.open(folder), msg.Revoke(node, reason)))


@app.command(epilog=EXIT_CODES)
def readmit(
    folder: Dir,
    node: Annotated[str, typer.Argument(help="The node's id, as in `status`.")],
) -> None:
    """Let a quarantined node work again, as a newcomer whose first units are checked."""
    typer.echo(_do(RunFolder.open(folder), msg.Readmit(node)))


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
    typer.echo(_do(RunFolder.open(folder), msg.Pause(reason)))


@app.command(epilog=EXIT_CODES)
def resume(folder: Dir) -> None:
    """Go on after `pause`."""
    typer.echo(_do(RunFolder.open(folder), msg.Resume()))


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


def _do(run: RunFolder, message: OperatorMessage) -> str:
    """Ask the serving coordinator, or decide here if none serves."""
    with OperatorClient(run) as client:
        try:
            return client.do(message)
        except NotServing:
            pass
    answer = decide_offline(run, message, SystemClock())
    return answer.reason if isinstance(answer, msg.Done) else str(answer)


def _status(run: RunFolder) -> dict[str, Any]:
    with OperatorClient(run) as client:
        try:
            return {**client.status(), "serving": True}
        except NotServing:
            return {**status_offline(run, SystemClock()), "serving": False}


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
