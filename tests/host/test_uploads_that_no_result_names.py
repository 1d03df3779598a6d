"""Loose uploads: known by their node also after a kill, bounded, dropped in the end."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.core_world import make_manifest
from support.hosts import enter, open_host, run
from support.routers import router_result

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import SlowDown, TooLarge, WorldError
from smalltalk_fed.host import loose as loose_module
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.loose import Loose
from smalltalk_fed.wire.limits import DiskLimits, RunLimits

SIZE = 100
ALLOWED = DiskLimits(node_bytes=4 * SIZE, total_bytes=10 * SIZE, node_blobs=3, kept_s=7200.0)


@dataclass
class Disk:
    """A blob store and its loose blobs, as one process has them."""

    folder: Path
    allowed: DiskLimits = ALLOWED

    def __post_init__(self) -> None:
        self.store = BlobStore(self.folder)
        self.loose = Loose(self.folder / "uploads", self.store, self.allowed)

    def upload(
        self, node: str, what: str, size: int = SIZE, now: float = 1.0, *, whole: bool = True
    ) -> str:
        """Upload bytes, or begin to; returns their digest."""
        data = what.encode().ljust(size, b".")
        digest = hashlib.sha256(data).hexdigest()
        self.loose.admit(node, digest, size, now)()
        upload = self.store.upload(digest, size, size)
        upload.write(data if whole else data[:1])
        upload.pause()
        if whole:
            upload.finish()
        return digest

    def here(self, digest: str) -> bool:
        return self.store.received(digest) > 0


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "blobs")


@pytest.mark.parametrize("whole", [True, False])
def test_a_nodes_oldest_loose_upload_makes_room_for_its_newer_ones(disk: Disk, whole: bool) -> None:
    others = disk.upload("n-2", "other")
    first, *rest = (disk.upload("n-1", f"{n}", whole=whole) for n in range(ALLOWED.node_blobs))
    assert disk.here(first)
    rest.append(disk.upload("n-1", "one more", whole=whole))
    assert not disk.here(first)
    assert all(disk.here(digest) for digest in (*rest, others))
    large = disk.upload("n-1", "large", 3 * SIZE, whole=whole)
    assert disk.loose.blobs_of("n-1") == [rest[-1], large]
    assert disk.loose.bytes_of("n-1") == ALLOWED.node_bytes
    assert not disk.here(rest[0])


def test_more_than_a_node_may_have_at_all_is_refused_by_its_number(disk: Disk) -> None:
    with pytest.raises(TooLarge, match=r"401 bytes; a node may have 400 bytes"):
        disk.upload("n-1", "too large", ALLOWED.node_bytes + 1)


def test_an_upload_that_is_announced_larger_counts_as_the_larger_one(disk: Disk) -> None:
    digest = disk.upload("n-1", "x", 10, whole=False)
    disk.loose.admit("n-1", digest, 10, 2.0)()
    assert disk.loose.bytes_of("n-1") == 10
    disk.loose.admit("n-1", digest, 4 * SIZE, 3.0)()
    assert disk.loose.bytes_of("n-1") == 4 * SIZE


def test_all_nodes_together_have_a_limit_and_who_has_most_makes_room(disk: Disk) -> None:
    small = [disk.upload(f"n-{n}", f"small {n}", SIZE) for n in range(6)]
    large = disk.upload("n-large", "large", 4 * SIZE)
    newest = disk.upload("n-new", "new", SIZE)
    assert not disk.here(large)
    assert all(disk.here(digest) for digest in (*small, newest))


def test_what_is_being_written_is_not_taken_away(disk: Disk) -> None:
    writing = []
    for number in range(ALLOWED.node_blobs):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        disk.loose.admit("n-1", digest, SIZE, 1.0)()
        writing.append(disk.store.upload(digest, SIZE, SIZE))
    with pytest.raises(SlowDown, match="at most 400 bytes and 3 blobs of a node"):
        disk.upload("n-1", "one more")
    writing[1].pause()
    assert disk.here(disk.upload("n-1", "one more"))


def test_a_named_blob_is_loose_no_more_and_stays(disk: Disk) -> None:
    named = disk.upload("n-1", "named")
    disk.loose.forget([named, "f" * 64])
    for number in range(5):
        disk.upload("n-1", f"{number}")
    assert disk.store.has(named)
    assert named not in disk.loose.blobs_of("n-1")


def test_what_a_kill_left_is_known_again_and_goes_in_time(disk: Disk) -> None:
    old = disk.upload("n-1", "old", now=1.0)
    begun = disk.upload("n-1", "begun", now=3600.0, whole=False)
    (disk.folder / "uploads" / f"{'a' * 64}.from").write_text('{"node_id"')  # torn
    again = Disk(disk.folder)
    assert again.loose.blobs_of("n-1") == [old, begun]
    again.upload("n-2", "later", now=1.0 + ALLOWED.kept_s + 1)
    assert not again.here(old)
    assert again.here(begun)
    again.upload("n-2", "much later", now=20_000.0)
    assert not again.here(begun)
    names = sorted(path.suffix for path in (disk.folder / "uploads").iterdir())
    assert names == [".from"] * len(again.loose.blobs_of("n-2"))


def test_an_upload_that_goes_on_for_weeks_is_not_too_old(disk: Disk) -> None:
    slow = disk.upload("n-1", "slow", now=1.0, whole=False)
    for week in range(1, 5):
        now = 1.0 + week * (ALLOWED.kept_s - 1)
        disk.loose.admit("n-1", slow, SIZE, now)()
        assert disk.here(slow)
    again = Disk(disk.folder, ALLOWED)
    again.loose.admit("n-2", "0" * 64, 1, now + ALLOWED.kept_s - 1)()
    assert again.here(slow)


def test_some_of_the_disk_is_left_to_the_journal(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = loose_module.shutil.disk_usage(disk.folder)
    full = usage._replace(total=1000, free=SIZE + 49)
    monkeypatch.setattr(loose_module.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(WorldError, match="kept for its journal"):
        disk.upload("n-1", "x")
    roomy = usage._replace(total=1000, free=SIZE + 50)
    monkeypatch.setattr(loose_module.shutil, "disk_usage", lambda folder: roomy)
    assert disk.here(disk.upload("n-1", "x"))


def test_an_accepted_result_names_its_blobs(tmp_path: Path) -> None:
    """The host forgets what an event names; the rest is known after a restart."""

    async def scene() -> None:
        host = open_host(tmp_path, make_manifest(experts=1, expert={"collect": "never"}))
        host.start()
        node_id = await enter(host)
        order = await host.ask(msg.Exchange(node_id, 1))
        assert isinstance(order, msg.Order)
        assert order.unit is not None
        result = router_result(host.manifest, host.blobs, order.unit.unit_id)
        for ref in result.outputs:
            host.loose.admit(node_id, ref.digest, ref.size, 1.0)()
        stray = hashlib.sha256(b"stray").hexdigest()
        host.loose.admit(node_id, stray, 5, 1.0)()
        host.blobs.put("parameters", b"stray")
        assert len(host.loose.blobs_of(node_id)) == len(result.outputs) + 1
        order = await host.ask(msg.Exchange(node_id, 1, finished=result, wants_work=False))
        assert isinstance(order, msg.Order)
        assert order.accepted == result.unit_id
        assert host.loose.blobs_of(node_id) == [stray]
        await host.stop()
        again = open_host(tmp_path, host.manifest)
        assert again.loose.blobs_of(node_id) == [stray]
        assert all(again.blobs.has(ref.digest) for ref in result.outputs)

    run(scene)


def test_the_limits_follow_the_manifest() -> None:
    small, large = (RunLimits.of(make_manifest(experts=n)) for n in (1, 8))
    assert small.unit_bytes_up == large.unit_bytes_up
    assert small.disk.node_bytes == 2 * small.unit_bytes_up
    assert small.disk.total_bytes < large.disk.total_bytes
    assert small.nodes.calls_burst < large.nodes.calls_burst
    home = RunLimits.of(make_manifest(expert={"collect": "never", "model": "335m"}))
    collects = RunLimits.of(make_manifest(expert={"model": "335m"}))
    assert collects.unit_bytes_up > 4 * 335_000_000 / 2 > home.unit_bytes_up


def test_what_one_unit_may_bring_is_never_more_than_its_node_may_have() -> None:
    for expert in ({"collect": "never"}, {"init": "seed"}, {"collect": "every 1 steps"}):
        limits = RunLimits.of(make_manifest(expert=expert))
        assert limits.unit_bytes_up <= limits.disk.node_bytes <= limits.disk.total_bytes
