"""`smalltalk-coordinator withdraw` and `relay`: what an operator does with single experts.

Rules: what is withdrawn is withdrawn for good, so it is asked once more unless `--yes` is given.
`relay` is for programs: a line of JSON in, a line of JSON out, one prompt after the other; what
goes wrong with one is told in its line, and the next is read. It knows neither text nor
tokenizer, and needs no torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from smalltalk_coordinator.asking import ask
from smalltalk_coordinator.operator_client import OperatorClient
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import Malformed, SmalltalkError, shown
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.wire import convert_serving
from smalltalk_fed.wire.convert_measuring import Text, text_from_proto, text_to_proto

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]


def withdraw(
    folder: Dir,
    target: Annotated[
        str, typer.Argument(metavar="EXPERT|NODE", help="An expert's number, or a node's id.")
    ],
    reason: Annotated[str, typer.Option(help="Kept in the journal and in the mixture.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take an expert, or all experts of a node, out of the mixture for good."""
    if not yes:
        typer.confirm(f"Take {target} out of the mixture for good?", abort=True, err=True)
    # A node's id begins with a letter.
    experts = (int(target),) if target.isascii() and target.isdigit() and len(target) < 8 else ()
    message = msg.Withdraw(experts, "" if experts else target, False, reason)
    typer.echo(ask(RunFolder.open(folder), message))


def relay(folder: Dir) -> None:
    """Pass prompts on to the nodes that serve their experts; JSON lines in and out, for programs.

    In: expert, tokens, tokens_max, temperature, top_p, seed, end; or, of a text to be measured,
    expert, tokens, sequence_tokens, prefix_tokens. Out: node_id, node_name, and tokens, or
    prefix_nll and suffix_nll; or error, exit_code.
    """
    with OperatorClient(RunFolder.open(folder)) as client:
        for line in sys.stdin.buffer:
            typer.echo(json.dumps(_answered(client, line)))
            sys.stdout.flush()


def _answered(client: OperatorClient, line: bytes) -> dict[str, Any]:
    try:
        asked = _asked(line)
        if isinstance(asked, Text):
            return asdict(client.measure(asked))
        return asdict(client.generate(asked))
    except SmalltalkError as error:
        return {"error": str(error), "exit_code": error.exit_code}


def _asked(line: bytes) -> convert_serving.Asked:
    try:
        said = json.loads(line)
        expert, tokens = int(said["expert"]), tuple(map(int, said["tokens"]))
        if "prefix_tokens" in said:
            lengths = int(said["sequence_tokens"]), int(said["prefix_tokens"])
            return text_from_proto(text_to_proto(Text(expert, tokens, *lengths)))
        end = said.get("end")
        prompt = convert_serving.Prompt(
            expert=expert,
            tokens=tokens,
            tokens_max=int(said["tokens_max"]),
            temperature=float(said["temperature"]),
            top_p=float(said["top_p"]),
            seed=int(said["seed"]),
            end=None if end is None else int(end),
        )
        return convert_serving.prompt_from_proto(convert_serving.prompt_to_proto(prompt))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Malformed(f"what is asked must be one line of JSON: {shown(str(error))}") from None
