"""The command `smalltalk prepare`: options, a progress bar and a summary around `prepare`.

Raises what `prepare` raises; the program that mounts the command turns that into one
sentence and an exit code. Progress goes to standard error, the result to standard output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smalltalk_fed.data.corpus import SOURCE_FILE
from smalltalk_fed.data.prepare import PrepareOptions, PrepareProgress
from smalltalk_fed.data.prepare import prepare as prepare_corpus

_PHASES = {"tokenizer": "reading text for the tokenizer", "tokens": "text to tokens"}


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Text: .txt, .jsonl (also .gz, .zst), .parquet, a data set saved by Hugging "
            "Face's datasets, or folders of these.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the corpus.")],
    sequence_tokens: Annotated[
        int, typer.Option(help="S: tokens in a sequence; 'sequence.length' of run.toml.")
    ] = 1024,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            help="Train a byte-level BPE tokenizer of this size; 32000 if none is given.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Take this tokenizer instead: a tokenizer.json or a folder with one.",
            show_default=False,
        ),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    label_field: Annotated[
        str | None,
        typer.Option(
            help="Field with a document's kind, for reports; training never sees it.",
            show_default=False,
        ),
    ] = None,
    split_field: Annotated[
        str | None,
        typer.Option(
            help="Field that says train, validation or test; otherwise documents are held out "
            "by hash.",
            show_default=False,
        ),
    ] = None,
    heldout: Annotated[
        float, typer.Option(help="Share of documents held out, where no field says so.")
    ] = 0.05,
    packing: Annotated[
        Literal["cut", "concat"],
        typer.Option(
            help="cut: documents are cut into whole sequences, remainders dropped; concat: "
            "documents are joined by end-of-text tokens."
        ),
    ] = "cut",
    workers: Annotated[
        int | None, typer.Option(help="Processes that encode; all cores if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Key of the held-out split.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make a token corpus out of text files."""
    options = PrepareOptions(
        inputs=tuple(inputs),
        out=out,
        sequence_tokens=sequence_tokens,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        text_field=text_field,
        label_field=label_field,
        split_field=split_field,
        heldout_fraction=heldout,
        packing=packing,
        workers=workers,
        seed=seed,
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[detail]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("looking at the files", total=None, detail="")

        def show(progress: PrepareProgress) -> None:
            bar.update(
                task,
                description=_PHASES[progress.phase],
                completed=progress.bytes_read,
                total=progress.bytes_total,
                detail=f"{progress.documents:,} documents, {progress.sequences:,} sequences",
            )

        manifest = prepare_corpus(options, show)
    source = json.loads((out / SOURCE_FILE).read_bytes())
    summary = {
        "folder": str(out),
        "digest": manifest.digest,
        "sequence_tokens": manifest.sequence_tokens,
        "vocabulary": manifest.vocabulary,
        "train": source["splits"]["train"],
        "heldout": source["splits"]["heldout"],
        "dropped_token_share": source["dropped_token_share"],
        "seconds": source["seconds"],
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print_summary(summary)


def _print_summary(summary: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    train, heldout = summary["train"], summary["heldout"]
    console.print(f"[bold]{escape(summary['folder'])}[/bold]  digest {summary['digest'][:16]}…")
    for name, split in (("training", train), ("held out", heldout)):
        console.print(
            f"  {name:9} {split['documents']:>12,} documents {split['sequences']:>12,} sequences"
        )
    console.print(
        f"  {summary['vocabulary']:,} tokens in the vocabulary, {summary['sequence_tokens']:,} a "
        f"sequence; {summary['dropped_token_share']:.1%} of all tokens dropped as remainders; "
        f"{summary['seconds']:.0f} s"
    )
    if not heldout["sequences"]:
        console.print(
            "  [yellow]Nothing is held out, so a run can't measure perplexity: give more "
            "documents, a split field or a larger --heldout.[/yellow]"
        )
