"""A disk that is full or read-only: one clear sentence, and nothing acknowledged is lost.

On a real file system of a few hundred kilobytes in memory, which needs the right to mount.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.core_world import make_manifest
from support.hosts import enter, open_host, run

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import Event, NodeRevoked
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal

DISK_BYTES = 1 << 20
DATA = b"0123456789abcdef" * 50_000  # 800 kB
DIGEST = hashlib.sha256(DATA).hexdigest()


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.decode().strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(512)):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk has no end")


def event(number: int) -> Event:
    return NodeRevoked(float(number), f"n-{number}", "why " * 100)


def test_a_full_disk_refuses_events_and_keeps_all_that_it_took(disk: Path) -> None:
    journal = Journal(disk / "j.sqlite")
    taken: list[Event] = []

    def append_for_ever() -> None:
        while True:
            events = [event(len(taken) + n) for n in range(7)]
            journal.append(events)
            taken.extend(events)

    with pytest.raises(WorldError, match=r"can't be written .*check the disk's space"):
        append_for_ever()
    assert len(taken) > 100
    assert list(journal.events()) == taken
    journal.close()
    mount("-o", f"remount,size={2 * DISK_BYTES}", disk)
    again = Journal(disk / "j.sqlite")
    assert list(again.events()) == taken
    again.append([event(-1)])
    assert list(again.events()) == [*taken, event(-1)]
    again.close()


def test_events_are_taken_again_when_there_is_room_again(disk: Path) -> None:
    journal = Journal(disk / "j.sqlite")
    journal.append([event(1)])
    ballast = fill(disk)
    with pytest.raises(WorldError, match="check the disk's space"):
        journal.append([event(n) for n in range(200)])
    ballast.unlink()
    journal.append([event(2)])
    assert list(journal.events()) == [event(1), event(2)]
    journal.close()


def test_a_snapshot_that_finds_no_room_costs_nothing(disk: Path) -> None:
    journal = Journal(disk / "j.sqlite")
    journal.append([event(n) for n in range(20)])
    journal.keep_snapshot(10, b"small")
    ballast = fill(disk)
    with pytest.raises(WorldError, match="check the disk's space"):
        journal.keep_snapshot(20, random_bytes(200_000))
    assert [snapshot.up_to for snapshot in journal.snapshots()] == [10]
    ballast.unlink()
    journal.keep_snapshot(20, random_bytes(200_000))
    journal.close()
    assert [snapshot.up_to for snapshot in Journal(disk / "j.sqlite").snapshots()] == [20, 10]


def test_an_upload_into_a_full_disk_goes_on_when_there_is_room(disk: Path) -> None:
    blobs = BlobStore(disk / "blobs")
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    upload = blobs.upload(DIGEST, len(DATA), len(DATA))

    def write_all() -> None:
        for start in range(0, len(DATA), 100_000):
            upload.write(DATA[start : start + 100_000])

    with pytest.raises(WorldError, match="make room on the disk"):
        write_all()
    upload.pause()
    assert not blobs.has(DIGEST)
    ballast.unlink()
    restarted = BlobStore(disk / "blobs")
    restarted.clean()
    offset = restarted.received(DIGEST)
    assert 0 < offset < len(DATA)
    again = restarted.upload(DIGEST, len(DATA), len(DATA))
    again.go_on_at(offset)
    again.write(DATA[offset:])
    again.finish()
    assert restarted.get(DIGEST) == DATA


def test_the_host_s_own_blob_counts_whole_or_not_at_all_on_a_full_disk(disk: Path) -> None:
    blobs = BlobStore(disk / "blobs")
    ballast = fill(disk)
    with pytest.raises(WorldError, match="make room on the disk"):
        blobs.put("share", DATA)
    assert not blobs.has(DIGEST)
    assert list((disk / "blobs" / "uploads").iterdir()) == []
    ballast.unlink()
    blobs.put("share", DATA)
    assert blobs.get(DIGEST) == DATA


def test_a_read_only_disk_is_a_clear_error_and_loses_nothing(disk: Path) -> None:
    journal = Journal(disk / "j.sqlite")
    journal.append([event(1)])
    blobs = BlobStore(disk / "blobs")
    blobs.put("share", b"bytes")
    journal.close()
    mount("-o", "remount,ro", disk)
    with pytest.raises(WorldError, match=r"can't be opened .*check the disk's space and permis"):
        Journal(disk / "j.sqlite")
    with pytest.raises(WorldError, match="can't be written"):
        blobs.put("share", b"others")
    with pytest.raises(WorldError, match="can't be written"):
        blobs.upload(DIGEST, len(DATA), len(DATA))
    mount("-o", "remount,rw", disk)
    again = Journal(disk / "j.sqlite")
    assert list(again.events()) == [event(1)]
    again.close()


def test_a_host_on_a_full_disk_stops_and_goes_on_with_all_that_it_acknowledged(
    disk: Path,
) -> None:
    acknowledged: list[str] = []

    async def until_it_is_full() -> None:
        host = open_host(disk)
        host.start()

        async def invite_for_ever() -> None:
            while True:
                secret = hashlib.sha256(b"%d" % len(acknowledged)).hexdigest()
                await host.ask(msg.MakeInvite(secret, 9e9, 1, "x" * 64))
                acknowledged.append(secret)

        with pytest.raises(WorldError, match="the coordinator is stopping"):
            await invite_for_ever()
        with pytest.raises(WorldError, match="check the disk's space"):
            await host.wait_stopped()
        await host.stop()

    async def with_room_again() -> None:
        host = open_host(disk)
        host.start()
        assert set(acknowledged) <= set(host.coordinator.state.invites)
        await enter(host)
        await host.stop()

    run(until_it_is_full)
    assert len(acknowledged) > 50
    mount("-o", f"remount,size={4 * DISK_BYTES}", disk)
    run(with_room_again)


def test_a_job_that_finds_no_room_stops_the_host_and_never_fails_the_run(
    disk: Path, tmp_path: Path
) -> None:
    """The journal lies elsewhere; only the blobs' disk is full."""

    def host_on(disk: Path) -> Host:
        journal = Journal(tmp_path / "j.sqlite")
        return Host(make_manifest(), journal, disk / "blobs", ManualClock())

    async def no_room() -> None:
        host = host_on(disk)
        ballast.append(fill(disk))
        host.start()
        await enter(host)  # enough nodes: the first chunk is to be divided
        with pytest.raises(WorldError, match="make room on the disk"):
            await host.wait_stopped()
        await host.stop()

    async def room_again() -> None:
        host = host_on(disk)
        host.start()
        assert host.coordinator.state.phase is Phase.ROUTING
        while not host.coordinator.state.round:
            await asyncio.sleep(0.01)
        await host.stop()

    ballast: list[Path] = []
    run(no_room)
    ballast[0].unlink()
    run(room_again)


def random_bytes(count: int) -> bytes:
    """Bytes that don't compress."""
    return b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(count // 32))
