"""The byte ledger: what travelled, by node, kind, direction and category.

Rules: counted where a message is sent or received, as its serialised size plus gRPC's five
bytes in front of every message; HTTP/2, TLS and TCP come on top and are stated by whoever
compares with sockets. `up` is from a node to the coordinator, at both ends. Three
categories that are never added up silently: `coordination` (the method's own traffic),
`weights` (an expert or the seed model, where the run collects or branches) and `data` (the
text itself). Thread-safe. Who counts is the programs' part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from smalltalk_fed.errors import WorldError

FRAME_BYTES = 5  # gRPC's prefix of each message: a flag and a length

Direction = Literal["up", "down"]
Category = Literal["coordination", "weights", "data"]

_WEIGHTS = frozenset({"config", "weights", "seed"})
_DATA = frozenset({"text", "corpus"})
_KIND_OF_BLOB = {
    "share": "ids",
    "segment": "ids",
    "routed": "experts",
    "experts": "experts",
    "parameters": "parameters",
    "before": "parameters",
    "scores": "scores",
    "config": "config",
    "weights": "weights",
    "state": "weights",
    "seed": "seed",
    "audit": "audit",
    "counts": "counts",
    "tokenizer": "tokenizer",
}
# Lines that are no blobs. Whatever else a peer calls a thing is "other": names are not free.
_OTHER_LINES = frozenset({"join", "exchange", "leave", "blob_state", "serve", "withdraw"}) | _DATA


def kind_of(name: str, unit_id: str = "") -> str:
    """The ledger's line for a blob's or a call's name.

    Blobs: `parameters` (also of a `router-3` that is broadcast, and those `before` a round),
    `scores`, `experts` (which expert each sequence goes to), `ids`, `config`, `weights` (also
    of a `state`: an expert's part-way, and of a `weights-3` that is public), `seed`, `audit`,
    `counts`, `tokenizer`. Calls: their name in lower case, such as `exchange`. Anything else:
    `other`. `unit_id` tells the seed model's upload from an expert's.
    """
    if name == "weights" and unit_id == "train_seed":
        return "seed"
    if name.startswith("router-"):
        return "parameters"
    if name.startswith("weights-"):
        return "weights"
    line = name.lower()
    return _KIND_OF_BLOB.get(name, line if line in _OTHER_LINES else "other")


def category_of(kind: str) -> Category:
    """The category that a kind belongs to."""
    if kind in _WEIGHTS:
        return "weights"
    return "data" if kind in _DATA else "coordination"


@dataclass(frozen=True)
class Row:
    """One line of the ledger."""

    node_id: str
    kind: str
    direction: Direction
    category: Category
    messages: int
    bytes: int


_Key = tuple[str, str, str, str]


class Ledger:
    """Counts of messages and bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[_Key, list[int]] = {}

    def count(
        self,
        node_id: str,
        kind: str,
        direction: Direction,
        nbytes: int,
        category: Category | None = None,
        messages: int = 1,
    ) -> None:
        """Add `nbytes` (frames included). Without `category`, the kind's own."""
        key = (node_id, kind, direction, category or category_of(kind))
        with self._lock:
            entry = self._counts.setdefault(key, [0, 0])
            entry[0] += messages
            entry[1] += nbytes

    def message(self, node_id: str, kind: str, direction: Direction, size: int) -> None:
        """Add one message of `size` serialised bytes and its frame."""
        self.count(node_id, kind, direction, size + FRAME_BYTES)

    def table(self) -> list[Row]:
        """All lines, in a fixed order."""
        with self._lock:
            copy = {key: tuple(entry) for key, entry in self._counts.items()}
        return [
            Row(node, kind, direction, category, *copy[node, kind, direction, category])  # type: ignore[arg-type]
            for node, kind, direction, category in sorted(copy)
        ]

    def totals(self) -> dict[str, int]:
        """Bytes by category and direction: `coordination_up`, `weights_down`, ..."""
        sums = {
            f"{category}_{direction}": 0
            for category in ("coordination", "weights", "data")
            for direction in ("up", "down")
        }
        for row in self.table():
            sums[f"{row.category}_{row.direction}"] += row.bytes
        return sums

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Bytes by kind: `{"scores": {"up": .., "down": ..}, ..}`."""
        sums: dict[str, dict[str, int]] = {}
        for row in self.table():
            line = sums.setdefault(row.kind, {"up": 0, "down": 0})
            line[row.direction] += row.bytes
        return sums

    def merge(self, rows: Iterable[Row]) -> None:
        """Add another ledger's lines."""
        for row in rows:
            self.count(row.node_id, row.kind, row.direction, row.bytes, row.category, row.messages)

    def to_json(self) -> list[dict[str, Any]]:
        """Lines as plain tables, for `json.dump`."""
        return [asdict(row) for row in self.table()]

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, Any]]) -> Ledger:
        """The ledger that `to_json` wrote.

        Raises:
            WorldError: it wrote something else.
        """
        ledger = cls()
        try:
            for row in rows:
                ledger.merge([_checked(Row(**row))])
        except (TypeError, ValueError):
            raise WorldError(
                "the byte ledger can't be read; it is damaged, or another version wrote it"
            ) from None
        return ledger


def _checked(row: Row) -> Row:
    texts = (row.node_id, row.kind, row.direction, row.category)
    counts = (row.messages, row.bytes)
    if not all(type(text) is str for text in texts) or not all(
        type(count) is int and 0 <= count < 2**63 for count in counts
    ):
        raise TypeError("a line holds something else")
    if row.direction not in get_args(Direction) or row.category not in get_args(Category):
        raise ValueError("a line is of no known kind")
    return row
