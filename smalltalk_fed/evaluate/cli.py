"""The commands `smalltalk evaluate`, `generate` and `baseline`: options, progress, printing.

Rules: results go to standard output, progress to standard error; torch is imported only
when a command runs. Errors are raised; the program turns them into a sentence.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.errors import UserError
from smalltalk_fed.evaluate.tables import print_choice, print_report

if TYPE_CHECKING:
    from smalltalk_fed.evaluate.federated import Answer, RelayedExperts
    from smalltalk_fed.evaluate.generate import Choice

MixtureFolder = Annotated[
    Path, typer.Argument(metavar="MIXTURE", help="Folder with a mixture.json.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Processor threads; torch's choice if not given.", show_default=False),
]
Federated = Annotated[
    bool,
    typer.Option(
        "--federated",
        help="Let nodes answer that serve experts which stayed with them; they see the text.",
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        help="With --federated: the run's folder, whose coordinator relays.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    mixture: MixtureFolder,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to evaluate on (.txt, .jsonl, .parquet, folders); may be given again."
        ),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="A corpus folder: its held-out part is used.")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(help="A dense model's folder to compare with, as `baseline` makes."),
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", help="Also run every expert on everything: best and random routing."
        ),
    ] = False,
    federated: Federated = False,
    run: RunFolder = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity of a mixture on held-out text, beside a dense model's."""
    from smalltalk_fed.evaluate.perplexity import evaluate as evaluate_mixture

    if bool(text) == bool(corpus):
        raise UserError("give the text to evaluate on: either --text FILE or --corpus DIR.")
    if federated and oracle:
        raise UserError("--oracle asks every expert about everything; it needs them all here.")
    with _relayed(federated, run) as elsewhere, _bar() as bar:
        task = bar.add_task("loading", total=1.0, detail="")

        def show(fraction: float, doing: str) -> None:
            bar.update(task, completed=fraction, description=doing)

        report = evaluate_mixture(
            mixture,
            text=text or (),
            corpus=corpus,
            dense=dense,
            oracle=oracle,
            device=device,
            threads=threads,
            on_progress=show,
            elsewhere=elsewhere,
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        print_report(report)


def generate(
    mixture: MixtureFolder,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to continue; may be given again. Without it, standard input."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: always the likeliest token.")
    ] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this share.")
    ] = 0.95,
    seed: Annotated[
        int | None, typer.Option(help="Fixes what is drawn.", show_default=False)
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each router's score and why one was chosen.")
    ] = False,
    federated: Federated = False,
    run: RunFolder = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt with the expert that the routers choose for it."""
    from smalltalk_fed.evaluate.federated import generate_federated
    from smalltalk_fed.evaluate.generate import Sampling
    from smalltalk_fed.evaluate.generate import generate as generate_text
    from smalltalk_fed.evaluate.mixture import Mixture
    from smalltalk_fed.train.device import choose_device

    prompts = prompt or [_standard_input()]
    _use_threads(threads)
    loaded = Mixture.load(mixture, choose_device(device), federated=federated)
    sampling = Sampling(tokens, temperature, top_p, seed)
    with _relayed(federated, run) as relayed:

        def write(one: str) -> tuple[Choice, Answer | None, Iterator[str]]:
            if relayed is not None:
                return generate_federated(loaded, relayed, one, sampling)
            choice, pieces = generate_text(loaded, one, sampling)
            return choice, None, pieces

        _write_all(prompts, write, explain=explain, as_json=as_json)


def _write_all(
    prompts: list[str],
    write: Callable[[str], tuple[Choice, Answer | None, Iterator[str]]],
    *,
    explain: bool,
    as_json: bool,
) -> None:
    for index, one in enumerate(prompts):
        choice, answer, pieces = write(one)
        if as_json:
            line = {"prompt": one, "text": "".join(pieces), **choice.to_json()}
            if answer is not None:
                line |= {"node": answer.node_id, "node_name": answer.node_name}
            typer.echo(json.dumps(line, ensure_ascii=False))
            continue
        if index:
            typer.echo("")
        if explain:
            print_choice(choice)
        if answer is not None:
            who = f"node {answer.node_id} ('{answer.node_name}')"
            typer.echo(f"[expert {choice.expert} at {who} answers]", err=True)
        typer.echo(one, nl=False)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        typer.echo("")


def baseline(
    config: Annotated[Path, typer.Option(help="The run's run.toml.")],
    corpus: Annotated[Path, typer.Option(help="The run's corpus folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key: --set run.seed=2")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share out every batch.")
    ] = 1,
    progress_file: Annotated[
        Path | None,
        typer.Option(help="Keep this file at the latest progress, as JSON.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the dense model to compare with: as many steps, a batch E times larger."""
    parsed = load_config(config, settings or ())
    from smalltalk_fed.evaluate.baseline import train_baseline
    from smalltalk_fed.train.device import choose_device

    _use_threads(threads)
    with _bar() as bar:
        task = bar.add_task("training the dense model", total=1.0, detail="")

        def show(fraction: float, figures: dict[str, float]) -> None:
            now = {
                "step": int(figures.get("step", 0)),
                "steps": parsed.expert.steps,
                "loss": figures.get("loss", 0.0),
                "tokens_per_s": figures.get("tokens_per_s", 0.0),
            }
            detail = f"loss {now['loss']:.2f}, {now['tokens_per_s']:,.0f} tokens/s"
            bar.update(task, completed=fraction, detail=detail)
            if progress_file is not None:
                part = progress_file.with_name(progress_file.name + ".part")
                part.write_text(json.dumps(now))
                part.replace(progress_file)

        result = train_baseline(
            parsed,
            corpus,
            out,
            threads=threads,
            device=str(choose_device(device)),
            processes=processes,
            on_progress=show,
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **result}, indent=1))
        return
    typer.echo(
        f"{out}: {result['parameters']:,} parameters, {result['tokens']:,} tokens in "
        f"{result['seconds']:.0f} s, last loss {result['loss']:.3f}"
    )


@contextlib.contextmanager
def _relayed(federated: bool, run: Path | None) -> Iterator[RelayedExperts | None]:
    """Experts at their nodes, if they are to be asked."""
    if federated != (run is not None):
        raise UserError("--federated and --run RUN go together: the run's coordinator relays.")
    if run is None:
        yield None
        return
    from smalltalk_fed.evaluate.federated import RelayedExperts

    with RelayedExperts(run) as experts:
        yield experts


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[detail]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise UserError("there is no prompt; give one with --prompt TEXT.")
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return text.removesuffix("\n")
