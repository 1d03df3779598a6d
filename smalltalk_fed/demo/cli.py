"""The command `smalltalk demo`: options, the run, the report, and what to try next."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from smalltalk_fed.demo.folder import DemoFolder, claim
from smalltalk_fed.demo.live import size
from smalltalk_fed.demo.recipe import Preset
from smalltalk_fed.demo.stage import DemoOptions
from smalltalk_fed.errors import UserError

REPORT_JSON, REPORT_HTML, REPORT_PNG = "report.json", "report.html", "report.png"
SAMPLE_CHARACTERS = 160


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the mixture and logs.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything that is random.")] = 1,
    experts: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Experts, and routers.", show_default="4"),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Node processes; one an expert if not given.")
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(help="full: some minutes; quick: the machinery alone, no good figures."),
    ] = "full",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one key of the run: --set expert.steps=300"),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Four silos of two domains each, whose text never leaves them; no dense model.",
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the coordinator's and the nodes' folders.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json at the end, all else to stderr.")
    ] = False,
) -> None:
    """Train a small mixture on this machine with real programs, and compare it with a dense model.

    A coordinator and nodes run as processes of their own and talk mutual-TLS gRPC on loopback.
    On two idle cores it takes some minutes.
    """
    console = Console(stderr=as_json, highlight=False)
    if private and (experts or nodes):
        raise UserError("--private has four silos with two experts each; leave --experts out.")
    _check_parts()
    options = DemoOptions(
        seed=seed,
        experts=experts or 4,
        nodes=nodes or experts or 4,
        preset=preset,
        settings=tuple(settings or ()),
        command=shlex.join(["smalltalk", *sys.argv[1:]]),
    )
    folder, replaced = claim(out)
    if replaced:
        console.print(f"An earlier demo was in {escape(str(out))}; it is replaced.", style="dim")
    if private:
        _private(folder, options, console, keep=keep, as_json=as_json)
        return
    from smalltalk_fed.demo.driver import Demo

    run = Demo(folder, options, console)
    findings = run.run()
    report = _write_report(folder, run, findings)
    if not keep:
        folder.remove_work()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    _print_summary(console, folder, report)


def _private(
    folder: DemoFolder, options: DemoOptions, console: Console, *, keep: bool, as_json: bool
) -> None:
    from smalltalk_fed.demo.silos import SiloDemo, print_summary

    report = SiloDemo(folder, options, console).run()
    text = json.dumps(report, indent=1, allow_nan=False)
    (folder.path / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
    if not keep:
        folder.remove_work()
    if as_json:
        typer.echo(text)
    print_summary(console, report)


def _check_parts() -> None:
    """Everything that the last step needs is there before the first one begins.

    Raises:
        ModuleNotFoundError: the program says how to install it.
    """
    for module in ("smalltalk_fed.demo.results", "smalltalk_fed.demo.report"):
        importlib.import_module(module)
    for package in ("torch", "transformers"):  # the children need them; found, not imported
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed", name=package)


def _write_report(folder: DemoFolder, run: Any, findings: Any) -> dict[str, Any]:
    from smalltalk_fed.demo.plan import Step
    from smalltalk_fed.demo.report import draw_picture, render_html
    from smalltalk_fed.demo.results import collect

    report: dict[str, Any] = {}

    def work() -> str:
        report.update(collect(findings, folder.corpus, folder.assignments))
        text = json.dumps(report, indent=1, allow_nan=False)
        (folder.path / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
        (folder.path / REPORT_HTML).write_text(render_html(report), encoding="utf-8")
        (folder.path / REPORT_PNG).write_bytes(draw_picture(report))
        return str(folder.path / REPORT_HTML)

    run.step(Step.REPORT, work)
    return report


def _print_summary(console: Console, folder: DemoFolder, report: dict[str, Any]) -> None:
    from smalltalk_fed.demo.report import headline

    console.print("")
    console.print(Text(headline(report), "bold"))
    console.print("")
    console.print(_figures(report))
    console.print("")
    console.print(_domains(report))
    console.print("")
    console.print(_travelled(report))
    console.print("")
    for sample in report["samples"]:
        _print_sample(console, sample)
    _print_next(console, folder, report)


def _figures(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "mixture", "dense", "ratio"):
        table.add_column(title, justify="right" if title else "left")
    ours, theirs = report["mixture"], report["dense"]
    for name, title, digits in (
        ("suffix_ppl", "suffix perplexity", 2),
        ("all_ppl", "perplexity of all tokens", 2),
        ("bits_per_byte", "bits per byte", 3),
    ):
        mine, other = ours.get(name), theirs.get(name)
        if mine and other:
            ratio = f"{mine / other:.3f}"
            table.add_row(title, f"{mine:.{digits}f}", f"{other:.{digits}f}", ratio)
    return table


def _travelled(report: dict[str, Any]) -> str:
    moved = report["bytes"]
    coordination = moved["coordination_up"] + moved["coordination_down"]
    per_token = moved["per_trained_token"].get("coordination", 0.0)
    ddp = moved["formulas_per_trained_token"]["ddp_fp32"]
    return (
        f"{size(coordination)} of coordination travelled, {per_token:.2f} bytes per trained token "
        f"(DDP's formula at this shape: {ddp:,.0f}), and {size(moved['weights_up'])} of finished "
        "experts; no text, no gradients."
    )


def _domains(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("domain")
    for expert in range(report["mixture"]["experts"]):
        table.add_column(f"expert {expert}", justify="right")
    table.add_column("most in one", justify="right")
    for row in report["domains"]:
        cells = [
            Text(f"{count:,}", "bold" if expert == row["top_expert"] else "dim")
            for expert, count in enumerate(row["experts"])
        ]
        share = "" if row["top_share"] is None else f"{row['top_share']:.0%}"
        table.add_row(row["domain"].replace("_", " "), *cells, share)
    nmi = report["agreement"]["segments_nmi"]
    if nmi is not None:
        table.caption = f"agreement with the domains, never used in training: NMI {nmi:.2f}"
        table.caption_justify = "left"
    return table


def _print_sample(console: Console, sample: dict[str, Any]) -> None:
    head = Text.assemble((sample["domain"].replace("_", " "), "bold"))
    head.append(f"  → expert {sample['expert']}", "cyan")
    console.print(head)
    prompt = " ".join(sample["prompt"].split())[-SAMPLE_CHARACTERS:]
    text = " ".join(sample["text"].split())[:SAMPLE_CHARACTERS]
    at_a_word = sample["prompt"][-1:].isspace() or sample["text"][:1].isspace()
    both = Text.assemble((f"…{prompt}", "dim"), " " if at_a_word else "", text)
    console.print(Padding(both, (0, 0, 0, 2), expand=False))


def _print_next(console: Console, folder: DemoFolder, report: dict[str, Any]) -> None:
    here = shlex.quote(str(folder.path))
    console.print("")
    console.print(
        f"The report: [bold]{escape(str(folder.path / REPORT_HTML))}[/bold]", soft_wrap=True
    )
    console.print("Try next:", style="dim")
    for command in (
        f'smalltalk generate {here}/mixture --explain --prompt "In the beginning"',
        f"smalltalk evaluate {here}/mixture --corpus {here}/corpus --dense {here}/dense",
        f"smalltalk demo --seed {report['seed'] + 1} --out {here}-seed{report['seed'] + 1}",
    ):
        console.print(f"  {command}", soft_wrap=True, markup=False)


__all__ = ["demo"]
