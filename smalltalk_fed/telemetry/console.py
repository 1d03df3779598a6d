"""How all three programs end: exit codes, and errors as one sentence on stderr.

A mistake of the person, a refusal by the other end or trouble with the world is one
sentence and the error's exit code, never a traceback; what is not foreseen keeps its
traceback, since it is a bug of ours.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click
import typer

from smalltalk_fed import __version__
from smalltalk_fed.errors import SmalltalkError, WorldError

INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 a bug of ours; 2 a wrong file, key or argument; 3 the other end "
    "refused; 4 disk, port or network; 130 interrupted."
)
_WORLD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def program(name: str, help_text: str) -> typer.Typer:
    """A typer application with the product's habits and `--version`."""
    app = typer.Typer(
        name=name,
        help=help_text,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"smalltalk-fed {__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        """Options of the program itself."""

    return app


def run_program(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run the command line (None: the process's own) and return the exit code."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):  # Ctrl-C, as click passes it on
        return _say(name, "interrupted.", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SmalltalkError as error:
        return _say(name, str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stdout = None
        return 0
    except OSError as error:
        if error.errno not in _WORLD:
            raise
        where = f" {error.filename}" if error.filename else ""
        return _say(name, f"can't write or read{where}: {error.strerror}.", WorldError.exit_code)
    if code == INTERRUPTED:  # typer's own way of passing Ctrl-C on
        return _say(name, "interrupted.", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _say(name: str, sentence: str, code: int) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return code
