"""`smalltalk`: the researcher's command. Wires commands to their rooms, decides nothing.

Rules: `--help` imports no torch: what a command needs it imports when it runs. A part of
the product that is not installed is named, with the line that installs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from smalltalk_fed.telemetry.console import EXIT_CODES, program, run_program

NAME = "smalltalk"
# What `pip install smalltalk-fed` leaves out, since a coordinator needs none of it.
_EXTRAS = frozenset(
    ("torch", "transformers", "tokenizers", "pyarrow", "zstandard", "matplotlib", "jinja2")
)
_FLOWER = "flwr"  # of an extra of its own


def make_app() -> typer.Typer:
    """The command line with all its commands."""
    from smalltalk_fed.data.cli import prepare
    from smalltalk_fed.demo.cli import demo
    from smalltalk_fed.demo.flower import demo_flower
    from smalltalk_fed.evaluate.cli import baseline, evaluate, generate
    from smalltalk_fed.simulation.cli import simulate

    app = program(NAME, "Prepare text, try a whole run on this machine, and use its mixture.")
    for command in (demo, demo_flower, prepare, simulate, baseline, evaluate, generate):
        app.command(epilog=EXIT_CODES)(command)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (None: the process's own) and return the exit code."""
    try:
        return run_program(make_app(), NAME, arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS and missing != _FLOWER:
            raise
        extra = "flower" if missing == _FLOWER else "all"
        print(
            f"{NAME}: {missing} is not installed; run `pip install 'smalltalk-fed[{extra}]'`.",
            file=sys.stderr,
        )
        return 4


def main() -> None:
    """Entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
