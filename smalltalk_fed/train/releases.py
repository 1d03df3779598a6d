"""What a silo has sent of its text under noise: each answer is made once, and kept.

Noise protects one answer. Asked again, fresh noise around the same text would be averaged away,
so that a silo hands out the very bytes of the first time, and counts what it has given against
what the run's configuration came to. Rules: an answer is on disk, with its entry in the ledger,
before anybody gets it; what was broken off gave nothing away, and costs nothing; a ledger that
can't be read stops the work, since nobody knows then what was given. One folder, one run: what
the same text gives to another run comes on top, and is its owner's to add up.

Layout: `ledger.json` (unit, inputs' digest, kind, amount, outputs' digests), `<sha256>.bin`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smalltalk_fed.errors import Refused, WorldError
from smalltalk_fed.model.state import write_atomically

FORMAT_VERSION = 1
LEDGER_FILE = "ledger.json"


@dataclass(frozen=True)
class Release:
    """One answer: `amount` of `kind` was spent for it; `outputs` are digests by name."""

    unit: str
    inputs: str
    kind: str
    amount: int
    outputs: dict[str, str]


def inputs_digest(inputs: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of inputs by name: what an answer is an answer to."""
    digest = hashlib.sha256()
    for name, data in sorted(inputs.items()):
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
    return digest.hexdigest()


class Releases:
    """The ledger of one silo in one run; for one process at a time."""

    def __init__(self, folder: Path, limits: Mapping[str, int]) -> None:
        """`limits`: the most that may be spent of each kind over the run.

        Raises WorldError when the ledger is there and can't be read.
        """
        self._folder, self._limits = folder, dict(limits)
        self._entries = self._read()

    def spent(self, kind: str) -> int:
        """How much of `kind` was given."""
        return sum(entry.amount for entry in self._entries if entry.kind == kind)

    def once(
        self,
        unit: str,
        inputs: str,
        kind: str,
        amount: int,
        make: Callable[[], Mapping[str, bytes]],
    ) -> dict[str, bytes]:
        """Return the outputs of `unit` for these inputs: as first given, or made now.

        Raises Refused when there is nothing left to spend, WorldError when the disk refuses or
        what was given is damaged.
        """
        for entry in self._entries:
            if (entry.unit, entry.inputs, entry.kind) == (unit, inputs, kind):
                return {name: self._load(digest) for name, digest in entry.outputs.items()}
        spent, limit = self.spent(kind), self._limits.get(kind, 0)
        if spent + amount > limit:
            raise Refused(
                f"{unit} asks this silo for {amount} more {kind}, and {spent} of the {limit} that "
                "the run's [privacy] allows were given; the same text may not be asked for more"
            )
        outputs = dict(make())
        digests = {name: self._store(data) for name, data in outputs.items()}
        self._entries.append(Release(unit, inputs, kind, amount, digests))
        self._write()
        return outputs

    def given(self, unit: str, kind: str) -> dict[str, bytes] | None:
        """What was given for `unit` last, whatever it was made from; None if nothing was.

        Raises WorldError when what was given is damaged.
        """
        for entry in reversed(self._entries):
            if (entry.unit, entry.kind) == (unit, kind):
                return {name: self._load(digest) for name, digest in entry.outputs.items()}
        return None

    def _store(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        write_atomically(self._folder / f"{digest}.bin", lambda part: _put(part, data))
        return digest

    def _load(self, digest: str) -> bytes:
        path = self._folder / f"{digest}.bin"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WorldError(f"{path} can't be read: {error}; {_KEPT}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise WorldError(f"{path} is damaged; {_KEPT}")
        return data

    def _write(self) -> None:
        table = {
            "format_version": FORMAT_VERSION,
            "releases": [asdict(entry) for entry in self._entries],
        }
        data = json.dumps(table, indent=1, sort_keys=True).encode()
        write_atomically(self._folder / LEDGER_FILE, lambda part: _put(part, data))

    def _read(self) -> list[Release]:
        path = self._folder / LEDGER_FILE
        try:
            table: Any = json.loads(path.read_bytes())
            if table["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its version is {table['format_version']}")
            return [_entry(entry) for entry in table["releases"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorldError(f"{path} can't be read: {error}; {_KEPT}") from None


_KEPT = "without it nobody knows what this silo has given away: bring it back from a backup"


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _entry(table: Any) -> Release:
    entry = Release(**table)
    texts = (entry.unit, entry.inputs, entry.kind, *entry.outputs.values())
    if (
        type(entry.amount) is not int
        or entry.amount < 0
        or not all(isinstance(text, str) for text in texts)
    ):
        raise ValueError(f"the entry of {entry.unit} is damaged")
    return entry
