"""A journal's row of the wrong types is refused where it is read, not where it is used."""

from __future__ import annotations

import json

import pytest

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.field_types import wrong_field
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import WorldError

BLOB = BlobRef("scores", "a" * 64, 3)
ACCEPTED = ev.UnitAccepted(
    1.0, "router_round/0/1", "n-1", 7, (BLOB,), {"loss": 3}, "ab", 2.0
)  # fmt: skip
GOOD: list[ev.Event] = [
    ACCEPTED,
    ev.PhaseChanged(1.0, Trigger.PAUSE, Phase.PAUSED, "quiet"),
    ev.RoundAssigned(1, 2, (BLOB, BLOB), {"load_0": 1.5}),
    ev.AuditSettled(1.0, "shard/1", "good", "", {}, ("audit/1/shard/1",)),
    ev.NodeRevoked(1.0, "n-1", "lost"),
    silo_ev.SeatTaken(1.0, 2, "n-1", 900, 100, "c" * 64, "operator"),
    silo_ev.PricesMoved(1.0, 1, 0, (0.5, -2), {"off_diagonal": 0.25}),
    silo_ev.ExpertWithdrawn(1.0, 2, "n-1", "owner", "ours again", ("ab" * 32,)),
]


@pytest.mark.parametrize("event", GOOD, ids=lambda event: type(event).__name__)
def test_what_was_written_reads_back(event: ev.Event) -> None:
    kind, body = ev.to_json(event)
    assert wrong_field(event) == ""
    assert ev.from_json(kind, body) == event
    assert ev.from_row(kind.encode(), body.encode()) == event


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at", "1.0"),
        ("at", None),
        ("at", True),
        ("at", float("nan")),
        ("at", float("inf")),
        ("at", 10**400),
        ("incarnation", 7.5),
        ("incarnation", 2**63),
        ("unit_id", 3),
        ("node_id", None),
        ("outputs", "scores"),
        ("outputs", [3]),
        ("outputs", [{"name": "scores", "digest": "a" * 64, "size": "3"}]),
        ("outputs", [{"name": "scores", "digest": "a" * 64, "size": True}]),
        ("outputs", [{"name": "scores"}]),
        ("figures", []),
        ("figures", {"loss": "3"}),
        ("figures", {"loss": None}),
        ("signature", b"".decode().split()),
        ("seconds", {}),
    ],
)
def test_a_field_of_another_type_is_named(name: str, value: object) -> None:
    kind, body = ev.to_json(ACCEPTED)
    with pytest.raises(WorldError, match="can't read"):
        ev.from_json(kind, json.dumps(json.loads(body) | {name: value}))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"UnitAccepted", b"[" * 100_000),
        (b"UnitAccepted", b"[]"),
        (b"UnitAccepted", b"3"),
        (b"UnitAccepted", b"\xff"),
        (b"\xff", b"{}"),
        (b"Nothing\x1b[2J", b"{}"),
        (b"PhaseChanged", b'{"trigger": []}'),
        (b"RoundAssigned", b'{"shares": {"a": 1}}'),
    ],
)
def test_what_is_no_event_is_refused_in_a_sentence(kind: bytes, body: bytes) -> None:
    with pytest.raises(WorldError) as caught:
        ev.from_row(kind, body)
    assert str(caught.value).isprintable()
