"""Whatever a coordinator calls things, a node's files lie in its own folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_run import tiny_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import BlobRef, Unit, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Malformed, PeerError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.values import unit_from_proto
from smalltalk_fed.worksite.cache import BlobCache
from smalltalk_fed.worksite.folders import Workplace, expert_folder, metrics_folder, unit_folder
from smalltalk_fed.worksite.identity import NodeFolder

LEAVING = ("../x", "/etc/x", "..", "a/../..", "router_round/../7", "shard/..", "a\\..\\b", "x\0y")


@pytest.mark.parametrize("name", LEAVING)
def test_a_unit_can_not_be_called_like_a_path(name: str) -> None:
    for unit_id in (name, f"router_round/{name}/1", f"train_expert/{name}", f"audit/1/{name}"):
        with pytest.raises(Malformed, match="a work unit's id"):
            unit_from_proto(pb.Unit(unit_id=unit_id))


@pytest.mark.parametrize("number", ["-1", "-0", "+1", " 1", "1_0", "٣", "1e3", "01", "9" * 40])
def test_numbers_in_a_units_id_are_plain_ones(number: str) -> None:
    with pytest.raises(Malformed, match="not a work unit's id"):
        UnitKey.parse(f"train_expert/{number}")


@pytest.mark.parametrize(
    "unit_id",
    ["router_round/3/7", "shard/heldout", "train_seed", "train_expert/2", "audit/1/shard/heldout"],
)
def test_every_units_folders_are_inside(unit_id: str, corpus: TokenCorpus, tmp_path: Path) -> None:
    place = Workplace.inside(
        NodeFolder.open(tmp_path / "node"), tiny_manifest(corpus), corpus, "cpu"
    )
    unit = Unit(UnitKey.parse(unit_id))
    for folder in (unit_folder(place, unit), metrics_folder(place, unit)):
        assert folder.resolve().is_relative_to((tmp_path / "node" / "work" / "run-1").resolve())
        assert folder.parent.name in ("run-1", "metrics")
    assert expert_folder(place, unit).parent == tmp_path / "node" / "experts" / "run-1"


@pytest.mark.parametrize("run_id", [*LEAVING, ".", "", "a" * 97])
def test_a_run_can_not_be_called_like_a_path(run_id: str, corpus: TokenCorpus) -> None:
    table = json.loads(tiny_manifest(corpus).to_bytes()) | {"run_id": run_id}
    with pytest.raises(Malformed, match="run_id"):
        RunManifest.from_bytes(json.dumps(table).encode())


def test_a_blobs_name_is_never_a_files(tmp_path: Path) -> None:
    ref = BlobRef("../../outside", "ab" * 32, 3)
    cache = BlobCache(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    assert cache.put(ref, b"abc") == tmp_path / "cache" / ("ab" * 32)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ab" * 32, "cache"]


@pytest.mark.parametrize("digest", [b"", b"../../x", b"d" * 31, b"d" * 33])
def test_a_digest_is_32_bytes_and_so_never_a_path(digest: bytes) -> None:
    with pytest.raises(PeerError, match="digest"):
        unit_from_proto(
            pb.Unit(unit_id="shard/1", inputs=[pb.BlobRef(name="x", digest=digest, size=1)])
        )
