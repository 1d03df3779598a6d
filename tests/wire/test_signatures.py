"""A signature holds for exactly what was signed."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest

from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import Unauthenticated, UserError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.signing import (
    SigningKey,
    sign_manifest,
    sign_result,
    sign_unit,
    verify_manifest,
    verify_result,
    verify_unit,
)
from smalltalk_fed.wire.values import unit_from_proto, unit_to_proto

KEY = SigningKey.create()
UNIT = Unit(UnitKey(UnitKind.ROUTER_ROUND, 1, 2), (BlobRef("share", "ab" * 32, 10),))
RESULT = Result(UNIT.unit_id, (BlobRef("parameters", "cd" * 32, 20),), {"loss": 1.0, "steps": 3})


def signed() -> Result:
    signature = sign_result(KEY, "run", "n-1", 7, UNIT, RESULT)
    return dataclasses.replace(RESULT, signature=signature)


def test_result_is_verified_with_figures_as_they_arrive() -> None:
    arrived = dataclasses.replace(signed(), figures={"steps": 3.0, "loss": 1.0})
    verify_result(KEY.public_bytes, "run", "n-1", 7, UNIT, arrived)


@pytest.mark.parametrize(
    ("run", "node", "incarnation", "unit", "result"),
    [
        ("other", "n-1", 7, UNIT, signed()),
        ("run", "n-2", 7, UNIT, signed()),
        ("run", "n-1", 8, UNIT, signed()),
        ("run", "n-1", 7, dataclasses.replace(UNIT, inputs=()), signed()),
        ("run", "n-1", 7, dataclasses.replace(UNIT, prices=(0.5, 0.0)), signed()),
        ("run", "n-1", 7, dataclasses.replace(UNIT, withdrawn=(1,)), signed()),
        ("run", "n-1", 7, UNIT, dataclasses.replace(signed(), unit_id="shard/1")),
        ("run", "n-1", 7, UNIT, dataclasses.replace(signed(), outputs=())),
        ("run", "n-1", 7, UNIT, dataclasses.replace(signed(), figures={"loss": 1.5, "steps": 3})),
        ("run", "n-1", 7, UNIT, dataclasses.replace(signed(), signature=b"")),
        ("run", "n-1", 7, UNIT, dataclasses.replace(signed(), signature=b"s" * 64)),
    ],
)
def test_anything_else_is_not(
    run: str, node: str, incarnation: int, unit: Unit, result: Result
) -> None:
    with pytest.raises(Unauthenticated):
        verify_result(KEY.public_bytes, run, node, incarnation, unit, result)


def test_another_key_is_not_the_signer() -> None:
    with pytest.raises(Unauthenticated):
        verify_result(SigningKey.create().public_bytes, "run", "n-1", 7, UNIT, signed())
    with pytest.raises(Unauthenticated):
        verify_result(b"no key", "run", "n-1", 7, UNIT, signed())


def test_manifest_is_signed_byte_for_byte() -> None:
    signature = sign_manifest(KEY, b"{}")
    verify_manifest(KEY.public_bytes, b"{}", signature)
    with pytest.raises(Unauthenticated, match="manifest"):
        verify_manifest(KEY.public_bytes, b"{ }", signature)


def test_signature_of_one_kind_does_not_fit_another() -> None:
    with pytest.raises(Unauthenticated):
        verify_manifest(KEY.public_bytes, b"{}", KEY.sign(b"{}"))


def test_key_survives_the_disk_privately(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public_bytes == KEY.public_bytes
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="no signing key"):
        SigningKey.load(path)
    path.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        SigningKey.load(path)


ASSIGNED = dataclasses.replace(UNIT, start_step=3, weights=(0.25, 0.75), sample=9)


def test_an_assignment_is_verified_as_it_arrives() -> None:
    signature = sign_unit(KEY, "run", "n-1", 7, ASSIGNED)
    arrived = unit_from_proto(pb.Unit.FromString(unit_to_proto(ASSIGNED).SerializeToString()))
    verify_unit(KEY.public_bytes, "run", "n-1", 7, arrived, signature)


@pytest.mark.parametrize(
    ("run", "node", "incarnation", "unit"),
    [
        ("other", "n-1", 7, ASSIGNED),
        ("run", "n-2", 7, ASSIGNED),
        ("run", "n-1", 8, ASSIGNED),
        ("run", "n-1", 7, dataclasses.replace(ASSIGNED, key=UnitKey(UnitKind.SHARD, index=1))),
        ("run", "n-1", 7, dataclasses.replace(ASSIGNED, inputs=())),
        ("run", "n-1", 7, dataclasses.replace(ASSIGNED, start_step=4)),
        ("run", "n-1", 7, dataclasses.replace(ASSIGNED, weights=())),
        ("run", "n-1", 7, dataclasses.replace(ASSIGNED, sample=8)),
        ("run", "n-1", 7, dataclasses.replace(ASSIGNED, redo=True)),
    ],
)
def test_any_other_assignment_is_not(run: str, node: str, incarnation: int, unit: Unit) -> None:
    signature = sign_unit(KEY, "run", "n-1", 7, ASSIGNED)
    with pytest.raises(Unauthenticated, match="the assignment of"):
        verify_unit(KEY.public_bytes, run, node, incarnation, unit, signature)


def test_an_assignment_without_a_signature_or_by_another_key_is_refused() -> None:
    others = sign_unit(SigningKey.create(), "run", "n-1", 7, ASSIGNED)
    for signature in (b"", bytes(64), others):
        with pytest.raises(Unauthenticated):
            verify_unit(KEY.public_bytes, "run", "n-1", 7, ASSIGNED, signature)
