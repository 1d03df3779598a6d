"""Where a run's coordinator is dialled: pairs of a run's and an enrolment address.

Rules: the first pair is what join tokens carry; nodes are told all pairs when they join, keep
them, and try them in turn. So a coordinator can get another name or move without a new
invitation: add the new pair, and remove the old one when the nodes have joined since. A file
of one pair without a list, as older versions wrote it, is read as well. Whether this machine
can listen at an address is not known here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalltalk_fed.errors import UserError
from smalltalk_fed.wire.secret_files import write_secret
from smalltalk_fed.wire.token import check_address
from smalltalk_fed.wire.values import MAX_ADDRESSES

Pair = tuple[str, str]  # of the run's port and the enrolment port, host:port each


@dataclass(frozen=True)
class Addresses:
    """The first pair, and others."""

    run: str
    enrolment: str
    others: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, runs: list[str], enrolments: list[str]) -> Addresses:
        """Pairs out of two lists of the same length.

        Raises:
            UserError: not pairs, not host:port, the same twice, or too many.
        """
        if len(runs) != len(enrolments) or not runs:
            raise UserError(
                f"{len(runs)} addresses for nodes and {len(enrolments)} for newcomers; give as "
                "many of the one as of the other."
            )
        every = [*runs, *enrolments]
        for address in every:
            check_address(address)
        if len(set(every)) != len(every):
            twice = next(address for address in every if every.count(address) > 1)
            raise UserError(f"{twice} is there twice; every port needs an address of its own.")
        if len(runs) > MAX_ADDRESSES:
            raise UserError(f"a run has at most {MAX_ADDRESSES} pairs of addresses.")
        first, *others = zip(runs, enrolments, strict=True)
        return cls(*first, tuple(others))

    @classmethod
    def load(cls, path: Path) -> Addresses:
        """Read what `save` or an older version wrote.

        Raises:
            FileNotFoundError: it is not there.
            OSError, ValueError, UserError: it can't be read.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        return cls.of(_texts(fields, "run"), _texts(fields, "enrolment"))

    def save(self, path: Path) -> None:
        """Replace the file. Raises WorldError when the disk refuses."""
        lists = {"run": self.runs, "enrolment": self.enrolments}
        write_secret(path, json.dumps(lists, indent=1).encode() + b"\n")

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All of them, the first one first."""
        return ((self.run, self.enrolment), *self.others)

    @property
    def runs(self) -> tuple[str, ...]:
        """What nodes dial."""
        return tuple(run for run, _ in self.pairs)

    @property
    def enrolments(self) -> tuple[str, ...]:
        """What newcomers dial, and nodes whose certificate ends."""
        return tuple(enrolment for _, enrolment in self.pairs)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names and numbers of all machines that are named, without ports."""
        return tuple(sorted({_host(address) for pair in self.pairs for address in pair}))

    def with_pair(self, pair: Pair) -> Addresses:
        """With one more at the end. Raises UserError as `of`."""
        return Addresses.of([*self.runs, pair[0]], [*self.enrolments, pair[1]])

    def without_pair(self, pair: Pair) -> Addresses:
        """Without one; the next one is the first then.

        Raises:
            UserError: it is not there, or the only one.
        """
        left = [other for other in self.pairs if other != pair]
        if len(left) == len(self.pairs):
            raise UserError(f"{show_pair(pair)} is not an address of this run.")
        if not left:
            raise UserError(f"{show_pair(pair)} is the only address of this run; add one first.")
        return Addresses.of([run for run, _ in left], [enrolment for _, enrolment in left])


def read_pair(text: str) -> Pair:
    """HOST:PORT/HOST:PORT. Raises UserError."""
    run, slash, enrolment = text.partition("/")
    if not slash:
        raise UserError(
            f"'{text}' is not a pair of addresses; write it as HOST:PORT/HOST:PORT, the one for "
            "nodes first, then the one for newcomers."
        )
    return check_address(run), check_address(enrolment)


def show_pair(pair: Pair) -> str:
    """As `read_pair` reads it."""
    return f"{pair[0]}/{pair[1]}"


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    """A list of texts, or one. Raises ValueError."""
    value = fields.get(name)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"'{name}' is no list of addresses")
    return found


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
