"""`smalltalk-node serve-experts` and `withdraw`: what an owner does with the experts it trained.

Rules: both speak under this node's certificate alone. `withdraw` needs no lock: it also works
while the node runs. What is withdrawn is withdrawn for good, so it is asked once more unless
`--yes` is given; the files on this machine stay, they are the owner's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smalltalk_fed.core import messages as msg
from smalltalk_fed.telemetry import logs
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert_serving
from smalltalk_fed.worksite.identity import DEFAULT_FOLDER, NodeFolder
from smalltalk_fed.worksite.limits import Limits

Dir = Annotated[
    Path | None, typer.Option("--dir", help="The node's folder.", show_default=str(DEFAULT_FOLDER))
]
Experts = Annotated[
    list[int] | None,
    typer.Option("--expert", min=0, help="Its number; may be given again. Without it: all."),
]
RecordEgress = Annotated[
    Path | None,
    typer.Option(help="Write down every message that leaves; see `egress`.", dir_okay=False),
]


def serve_experts(
    folder: Dir = None,
    expert: Experts = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0: torch's choice.")] = 0,
    at_once: Annotated[
        int,
        typer.Option(min=1, max=convert_serving.MAX_AT_ONCE, help="Prompts answered at a time."),
    ] = 1,
    tokens_max: Annotated[
        int,
        typer.Option(
            min=1, max=convert_serving.MAX_ANSWER_TOKENS, help="Longest answer, in tokens."
        ),
    ] = 1024,
    answers: Annotated[
        int, typer.Option(min=0, help="End after so many answers; 0: at Ctrl-C.")
    ] = 0,
    record_egress: RecordEgress = None,
    log_json: Annotated[bool, typer.Option(help="Log JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Let this node's finished experts answer prompts, until Ctrl-C; their weights stay here.

    The organiser and the machine that runs the coordinator can read prompts and answers; this
    machine reads the prompts. Hours and the limit of memory are those of `run`.
    """
    from smalltalk_fed.worksite import machine
    from smalltalk_fed.worksite.guard import cap_process_memory
    from smalltalk_fed.worksite.hours import Hours, work_by_hours
    from smalltalk_node.options import Options
    from smalltalk_node.recording import EgressRecorder
    from smalltalk_node.serving import Bounds, Serving

    logs.set_up(as_json=log_json, verbose=verbose)
    place = NodeFolder.open(folder)
    with place.locked():
        limits = Limits.load(place.path)
        recorder = EgressRecorder(record_egress) if record_egress else None
        options = Options(None, device, threads, limits, recorder)
        if not options.on_gpu:
            cap_process_memory(limits.memory_gb)
        machine.settle_threads(threads, 0)
        bounds = Bounds(at_once, tokens_max, answers)
        wanted = tuple(sorted(set(expert or ())))
        reason = work_by_hours(
            Hours.parse(limits.hours), lambda: Serving(place, options, bounds, wanted)
        )
    typer.echo(reason)


def withdraw(
    folder: Dir = None,
    expert: Experts = None,
    reason: Annotated[str, typer.Option(help="Kept in the journal and in the mixture.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    record_egress: RecordEgress = None,
) -> None:
    """Take this node's experts out of the run's mixture for good; nothing is trained again."""
    from smalltalk_node.connection import Connection
    from smalltalk_node.outgoing import Outgoing
    from smalltalk_node.recording import EgressRecorder

    place = NodeFolder.open(folder)
    identity = place.identity()
    which = f"expert {', '.join(map(str, expert))}" if expert else "all experts of this node"
    if not yes:
        typer.confirm(f"Take {which} out of the mixture for good?", abort=True, err=True)
    outgoing = Outgoing(EgressRecorder(record_egress) if record_egress else None)
    connection = Connection(place, identity, Ledger(), outgoing)
    try:
        typer.echo(
            connection.withdraw(msg.Withdraw(tuple(expert or ()), identity.node_id, True, reason))
        )
    finally:
        connection.close()
    typer.echo(
        f"What is in {place.path / 'experts'} is still there and yours; copies of the mixture that "
        "others made are beyond anybody's reach.",
        err=True,
    )
