"""The commands that say who may come and where to: `invite` and `addresses`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from smalltalk_coordinator import tables
from smalltalk_coordinator.asking import ask, status_of
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import UserError
from smalltalk_fed.host.addresses import read_pair, show_pair
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import ADDRESSES_FILE, RunFolder
from smalltalk_fed.wire.token import JoinToken, encode_token, new_secret, secret_sha256

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]


def invite(
    folder: Dir,
    uses: Annotated[int, typer.Option(min=1, help="How many machines may use it.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="Valid for so long.")] = 72.0,
    name: Annotated[str, typer.Option(help="A note for yourself, such as who it is for.")] = "",
    show_list: Annotated[
        bool, typer.Option("--list", help="Show all invitations; their secrets are not kept.")
    ] = False,
    cancel: Annotated[
        str, typer.Option(metavar="PREFIX", help="Void the invitation that `--list` shows so.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print JSON.")] = False,
) -> None:
    """Print a join token: one line for a node operator."""
    run = RunFolder.open(folder)
    if cancel and show_list:
        raise UserError("--cancel and --list are two commands; give one of them.")
    if as_json and not show_list:
        raise UserError("--json goes with --list; a join token is one line anyway.")
    if cancel:
        typer.echo(ask(run, msg.CancelInvite(cancel)))
        return
    if show_list:
        _show_list(run, as_json)
        return
    secret, expires_at = new_secret(), SystemClock().now() + hours * 3600
    ask(run, msg.MakeInvite(secret_sha256(secret), expires_at, uses, name))
    token = JoinToken(
        run.addresses.run,
        run.addresses.enrolment,
        run.authority().certificate_der,
        secret,
        int(expires_at),
    )
    typer.echo(encode_token(token))


def addresses(
    folder: Dir,
    add: Annotated[
        str,
        typer.Option(
            metavar="RUN/ENROL",
            help="One more way to here, HOST:PORT/HOST:PORT: for nodes, for newcomers.",
        ),
    ] = "",
    remove: Annotated[
        str, typer.Option(metavar="RUN/ENROL", help="Forget one; new tokens carry the first left.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show or change where nodes dial; no node needs a new invitation.

    A coordinator that serves follows within seconds; nodes are told when they join next.
    """
    run = RunFolder.open(folder)
    now = run.addresses
    if add:
        now = now.with_pair(read_pair(add))
    if remove:
        now = now.without_pair(read_pair(remove))
    if now != run.addresses:
        now.save(folder / ADDRESSES_FILE)
    if as_json:
        typer.echo(json.dumps([{"run": a, "enrolment": b} for a, b in now.pairs]))
        return
    for pair in now.pairs:
        typer.echo(show_pair(pair))


def _show_list(run: RunFolder, as_json: bool) -> None:
    status = status_of(run)
    if as_json:
        typer.echo(json.dumps(status["invites"]))
        return
    names = {node["node_id"]: node["name"] for node in status["nodes"]}
    tables.show_invites(status["invites"], names)
