"""`smalltalk-node egress FILE`: what a record of all that left holds, for people.

Rules: whatever is not declared is an error of this program, and ends the command with exit
code 1, as does a text that was looked for and found; all findings are printed before.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.errors import OurError
from smalltalk_fed.wire.egress_record import (
    UPLOAD,
    read_record,
    undeclared,
    undeclared_upload,
    uploads,
)


@dataclass
class Line:
    """All messages of one call, or all uploads of one name."""

    what: str
    messages: int = 0
    bytes: int = 0
    largest: int = 0

    def add(self, size: int) -> None:
        """One more of `size` bytes."""
        self.messages += 1
        self.bytes += size
        self.largest = max(self.largest, size)


def report(record: Path, manifest: RunManifest | None, find: str | None, *, as_json: bool) -> None:
    """Print what left, and what should not have.

    Raises:
        DataError: the file is no record.
        OurError: something undeclared left, or `find` was found.
    """
    lines: dict[str, Line] = {}
    wrong: list[str] = []
    parts, found = [], 0
    needle = (find or "").encode()
    for sent in read_record(record):
        lines.setdefault(sent.call, Line(sent.call)).add(len(sent.data))
        found += bool(needle) and needle in sent.data
        problem = undeclared(sent)
        if problem:
            wrong.append(problem)
        elif sent.call == UPLOAD:
            parts.append(sent)
    for upload in uploads(parts):
        what = f"{UPLOAD} of {upload.name}"
        lines.setdefault(what, Line(what)).add(len(upload.data))
        found += bool(needle) and needle in upload.data
        if problem := undeclared_upload(upload, manifest):
            wrong.append(problem)
    _show(list(lines.values()), wrong, as_json=as_json)
    if wrong:
        raise OurError(f"what is not declared has left this machine: {wrong[0]}")
    if found:
        raise OurError(f"the text was found in {found} of the messages that left")


def _show(lines: list[Line], wrong: list[str], *, as_json: bool) -> None:
    if as_json:
        table = {"left": [asdict(line) for line in lines], "undeclared": wrong}
        typer.echo(json.dumps(table, indent=1))
        return
    table_ = Table("what", "messages", "bytes", "largest", title="What left", title_justify="left")
    for line in lines:
        table_.add_row(line.what, f"{line.messages:,}", f"{line.bytes:,}", f"{line.largest:,}")
    console = Console()
    console.print(table_)
    console.print(f"{len(wrong)} things that are not declared" if wrong else "All of it declared.")
    for problem in wrong:
        console.print(problem, markup=False, highlight=False)
