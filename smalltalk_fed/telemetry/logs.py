"""Logging of the programs: readable on a terminal, JSON lines for machines.

Rules: everything goes to stderr, so that stdout stays a program's answer; a record's
`extra={"facts": {...}}` are shown as `key=value` to people and as keys to machines. Secrets
are never logged: nothing that holds one has a readable form. Call `set_up` once a program.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

ROOT = "smalltalk"


def get_logger(name: str) -> logging.Logger:
    """The logger of one part of the product."""
    return logging.getLogger(f"{ROOT}.{name}")


def set_up(*, as_json: bool = False, verbose: bool = False) -> None:
    """Send the product's records to stderr; other libraries' only from warnings on."""
    handler = _json_handler() if as_json else _people_handler()
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(ROOT).setLevel(logging.DEBUG if verbose else logging.INFO)


def _json_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


def _people_handler() -> logging.Handler:
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, markup=False, log_time_format="%X"
        )
        handler.setFormatter(PeopleFormatter("%(message)s"))
        return handler
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PeopleFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    return handler


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = getattr(record, "facts", None)
    return facts if isinstance(facts, dict) else {}


class PeopleFormatter(logging.Formatter):
    """A line of text with the facts at its end."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """As logging's own, and the facts."""
        line = super().formatMessage(record)
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        return f"{line}  {facts}" if facts else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, part, message, facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; an exception's traceback under `error`."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": record.name.removeprefix(f"{ROOT}."),
            "message": record.getMessage(),
        }
        line |= _facts(record)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
