"""Decoders of what is in a run folder, which travels as a backup: keys, journal, addresses."""

from __future__ import annotations

import json
from pathlib import Path

from fuzz import blobs
from fuzz.decoders import Decoder
from fuzz.journal_cells import changed_journal, journal_seeds
from fuzz.messages import states
from fuzz.place import place, written
from support.core_world import blob, make_manifest

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core import snapshot
from smalltalk_fed.errors import UserError, WorldError
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.recovery import read_snapshot
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import key_from_pem


def decoders() -> list[Decoder]:
    """By what the file or the journal's row is."""
    user, world = (UserError,), (WorldError,)
    return [
        Decoder("addresses.json", _addresses, user, (_addresses_json(), TWO_PAIRS), json=True),
        Decoder("manifest.json", _run_folder, user, (make_manifest().to_bytes(),), json=True),
        Decoder("private key", _private_key, user, (blobs.private_key(),)),
        Decoder("journal event", _event, world, _events()),
        Decoder("snapshot", _snapshot, world, _snapshots(), json=True),
        Decoder("ledger", _ledger, world, (_ledger_json(),), json=True),
        Decoder("journal", lambda data: changed_journal(place(), data), world, journal_seeds()),
    ]


def _run_files(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "manifest.json").write_bytes(make_manifest().to_bytes())
    (path / "addresses.json").write_bytes(_addresses_json())


TWO_PAIRS = b'{"run": ["a:1", "[::1]:1"], "enrolment": ["a:2", "[::1]:2"]}'


def _addresses_json() -> bytes:
    return b'{"run": "127.0.0.1:4100", "enrolment": "127.0.0.1:4101"}'


def _addresses(data: bytes) -> object:
    return RunFolder.open(written("run-a", "addresses.json", data, _run_files))


def _run_folder(data: bytes) -> object:
    return RunFolder.open(written("run-m", "manifest.json", data, _run_files))


def _private_key(data: bytes) -> object:
    return key_from_pem(data, "key.pem")


def _event(data: bytes) -> object:
    kind, _, body = data.partition(b" ")
    event = ev.from_row(kind, body)
    return ev.to_json(event)


def _events() -> tuple[bytes, ...]:
    accepted = ev.UnitAccepted(
        3.0, "router_round/0/1", "n-1", 7, (blob("parameters", "p"),), {"loss": 3.0}, "ab", 2.0
    )
    some: list[ev.Event] = [
        ev.InviteMade(1.0, "a" * 64, 9.0, 1, "box"),
        ev.RoundAssigned(2.0, 1, (blob("share", "0"),), {"load_0": 5.0}),
        accepted,
        silo_ev.SeatTaken(1.0, 2, "n-1", 900, 100, "c" * 64, "operator"),
        silo_ev.PricesMoved(1.0, 1, 0, (0.5, -2.0), {"off_diagonal": 0.25}),
    ]
    return tuple(b" ".join(part.encode() for part in ev.to_json(event)) for event in some)


def _snapshot(data: bytes) -> object:
    return snapshot.to_json(read_snapshot(make_manifest(), data))


def _snapshots() -> tuple[bytes, ...]:
    return tuple(json.dumps(snapshot.to_json(state)).encode() for state in states())


def _ledger(data: bytes) -> object:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):  # the journal's part
        raise WorldError("not JSON") from None
    return Ledger.from_json(rows).totals()


def _ledger_json() -> bytes:
    ledger = Ledger()
    ledger.message("n-1", "scores", "up", 99)
    return json.dumps(ledger.to_json()).encode()
