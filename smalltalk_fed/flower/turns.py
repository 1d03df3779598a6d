"""What Flower's messages carry: who a node is, the order of a turn, and its report.

    query.join    ServerApp: JoinReply, a challenge    node: JoinRequest, its name, a signature
    train,        ServerApp: JoinReply, ExchangeReply  node: ExchangeRequest
    evaluate                 with the unit's inputs          with its outputs
    query.end     ServerApp: ExchangeReply             node: nothing
    query.knock   ServerApp: nothing                   node: nothing (see `post`)

Rules: the messages are the protobuf bytes of the native carrier; blobs ride beside them as
arrays of bytes by digest, which Flower cuts into pieces and sends piece by piece. What came is
not trusted: a field that is missing or of another type is refused, a blob counts under the
digest that it has, whatever it is called. Figures stand in a MetricRecord as well, for Flower's
own tools; nobody here reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from smalltalk_fed.errors import Malformed, shown

JOIN, TRAIN, EVALUATE, END = "query.join", "train", "evaluate", "query.end"
_TURN, _BLOBS, _FIGURES = "turn", "blobs", "figures"
_BYTES = "smalltalk.bytes"  # how an Array's data is to be read: as it is
NAME_CHARS_MAX = 64
T = TypeVar("T", bytes, str, float)


@dataclass(frozen=True)
class Question:
    """`query.join`: who is there, for this run? `challenge` is signed by who answers.

    `welcome`: a JoinReply to nobody, for the signed manifest; `blobs`: what a node said it lacks.
    """

    challenge: bytes
    welcome: bytes
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """As Flower carries it."""
        turn = ConfigRecord({"challenge": self.challenge, "welcome": self.welcome})
        return RecordDict({_TURN: turn, _BLOBS: _blobs(self.blobs)})

    @classmethod
    def from_records(cls, records: RecordDict) -> Question:
        """Raises Malformed."""
        challenge, welcome = (_take(records, name, bytes) for name in ("challenge", "welcome"))
        return cls(challenge, welcome, _checked_blobs(records))


@dataclass(frozen=True)
class Introduction:
    """The answer to it. `join`: a JoinRequest; `proof`: `wire.signing.sign_presence` over it.

    `missing`: digests of blobs without which the node can't answer; then there is no more.
    """

    join: bytes = b""
    proof: bytes = b""
    name: str = ""
    missing: tuple[str, ...] = ()

    def to_records(self) -> RecordDict:
        """As Flower carries it."""
        turn = {"join": self.join, "proof": self.proof, "name": self.name}
        return RecordDict({_TURN: ConfigRecord(turn | {"missing": list(self.missing)})})

    @classmethod
    def from_records(cls, records: RecordDict) -> Introduction:
        """Raises Malformed."""
        return cls(
            _take(records, "join", bytes),
            _take(records, "proof", bytes),
            _take(records, "name", str)[:NAME_CHARS_MAX],
            _texts(_fields(records).get("missing", [])),
        )


@dataclass(frozen=True)
class Order:
    """A turn's work. `welcome`: a JoinReply; `exchange`: an ExchangeReply; `blobs` by digest."""

    welcome: bytes
    exchange: bytes
    incarnation: int
    turn_s: float
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """As Flower carries it."""
        turn = ConfigRecord(
            {
                "welcome": self.welcome,
                "exchange": self.exchange,
                "incarnation": self.incarnation,
                "turn_s": self.turn_s,
            }
        )
        return RecordDict({_TURN: turn, _BLOBS: _blobs(self.blobs)})

    @classmethod
    def from_records(cls, records: RecordDict) -> Order:
        """Raises Malformed."""
        return cls(
            _take(records, "welcome", bytes),
            _take(records, "exchange", bytes),
            int(_take(records, "incarnation", float)),
            _take(records, "turn_s", float),
            _checked_blobs(records),
        )


@dataclass(frozen=True)
class Report:
    """What came of a turn. `exchange`: an ExchangeRequest; `missing`: digests of inputs to send.

    `refused`: why there is no turn at all, such as a corpus that is another one.
    """

    exchange: bytes = b""
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    refused: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """As Flower carries it."""
        turn = {"exchange": self.exchange, "refused": self.refused, "missing": list(self.missing)}
        records = RecordDict({_TURN: ConfigRecord(turn), _BLOBS: _blobs(self.blobs)})
        records[_FIGURES] = MetricRecord({k: float(v) for k, v in self.figures.items()})
        return records

    @classmethod
    def from_records(cls, records: RecordDict) -> Report:
        """Raises Malformed."""
        return cls(
            _take(records, "exchange", bytes),
            _checked_blobs(records),
            _texts(_fields(records).get("missing", [])),
            _take(records, "refused", str),
        )


def refusal(reason: str) -> RecordDict:
    """The answer of a node that can't take part."""
    return Report(refused=reason).to_records()


def refused(records: RecordDict) -> str:
    """Why a node takes no part; empty if it does."""
    reason = _fields(records).get("refused", "")
    return shown(reason, 500) if isinstance(reason, str) else "it says so"


# ----------------------------------------------------------------------------------- small


def _fields(records: RecordDict) -> Mapping[str, Any]:
    turn = records.config_records.get(_TURN)
    if turn is None:
        raise Malformed("a Flower message came without the record 'turn'")
    return turn


def _take(records: RecordDict, name: str, kind: type[T]) -> T:
    value = _fields(records).get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind):
        raise Malformed(f"a Flower message came without '{name}', or with another kind of it")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Malformed("a Flower message lists what is missing in another form")
    return tuple(value)


def _blobs(blobs: Mapping[str, bytes]) -> ArrayRecord:
    return ArrayRecord(
        {
            digest: Array(dtype="uint8", shape=(len(data),), stype=_BYTES, data=data)
            for digest, data in blobs.items()
        }
    )


def _checked_blobs(records: RecordDict) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for array in _arrays(records):
        data = bytes(array.data)
        found[hashlib.sha256(data).hexdigest()] = data
    return found


def _arrays(records: RecordDict) -> Iterable[Array]:
    record = records.array_records.get(_BLOBS)
    return () if record is None else record.values()
