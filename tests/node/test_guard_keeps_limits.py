"""Disk, share of the time and memory are kept while a node works, not only before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from smalltalk_node.connection import Connection
from smalltalk_node.options import Options
from smalltalk_node.outcomes import WORLD_FAILURES_MAX
from smalltalk_node.outgoing import Outgoing
from smalltalk_node.program import Program
from smalltalk_node.transfer import put_blob
from support.loopback_coordinator import Served
from support.node_stage import STOP, Stage, ids
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.units import Unit, UnitKey, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.train import loop
from smalltalk_fed.worksite import guard as guard_module
from smalltalk_fed.worksite.cache import BlobCache, ref_of
from smalltalk_fed.worksite.folders import Workplace, unit_folder
from smalltalk_fed.worksite.footprint import CACHED_PARAMETERS, CACHED_TOKENS, disk_need
from smalltalk_fed.worksite.guard import GB, Guard, Pace, bytes_in
from smalltalk_fed.worksite.limits import Limits


def place_of(corpus: TokenCorpus, folder: Path, disk_bytes: int) -> Workplace:
    for name in ("work", "experts", "cache"):
        (folder / name).mkdir()
    limits = Limits(disk_gb=disk_bytes / GB)
    manifest = tiny_manifest(corpus)
    return Workplace(manifest, corpus, folder / "work", folder / "experts", "cpu", limits)


# ------------------------------------------------------------------------------------ disk


def test_the_tokens_of_a_silos_own_text_count(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "text" / "made")  # where a node makes them
    need = disk_need(tiny_manifest(corpus), UnitKind.TRAIN_EXPERT)
    place = place_of(corpus, tmp_path, need + 1000)
    with pytest.raises(WorldError, match="over the"):
        Guard(place, BlobCache(tmp_path / "cache")).before(Unit(UnitKey.parse("train_expert/0")))


def test_a_unit_for_which_there_is_no_room_is_not_begun(
    corpus: TokenCorpus, tmp_path: Path
) -> None:
    need = disk_need(tiny_manifest(corpus), UnitKind.TRAIN_EXPERT)
    place = place_of(corpus, tmp_path, need + 1000)
    cache = BlobCache(tmp_path / "cache")
    unit = Unit(UnitKey.parse("train_expert/0"))
    Guard(place, cache).before(unit)
    (place.experts / "old").write_bytes(bytes(2000))
    with pytest.raises(WorldError, match="delete old experts"):
        Guard(place, cache).before(unit)
    # What it has left here before is part of what it needs.
    (place.experts / "old").unlink()
    unit_folder(place, unit).mkdir(parents=True)
    (unit_folder(place, unit) / "checkpoint").write_bytes(bytes(need // 2))
    Guard(place, cache).before(unit)


def test_the_cache_makes_way_first(corpus: TokenCorpus, tmp_path: Path) -> None:
    need = disk_need(tiny_manifest(corpus), UnitKind.TRAIN_EXPERT)
    place = place_of(corpus, tmp_path, need + 1000)
    for age, name in enumerate("abc"):
        (tmp_path / "cache" / name).write_bytes(bytes(600))
        os.utime(tmp_path / "cache" / name, (1000 + age, 1000 + age))
    (place.experts / "kept").write_bytes(bytes(300))
    Guard(place, BlobCache(tmp_path / "cache")).before(Unit(UnitKey.parse("train_expert/0")))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["c"]
    assert (place.experts / "kept").exists()


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_bytes(bytes(100))
    os.link(tmp_path / "a" / "x", tmp_path / "b" / "y")
    (tmp_path / "b" / "z").write_bytes(bytes(10))
    assert bytes_in(tmp_path / "a", tmp_path / "b", tmp_path / "missing") == 110


def test_a_node_that_grows_over_its_limit_stops_the_unit_and_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody fills its folder while it trains: a checkpoint, a failure with the sentence."""
    monkeypatch.setattr(guard_module, "MEASURE_S", 0.0)
    manifest = tiny_manifest(stage.corpus, expert={"steps": 20_000})
    stage.script(manifest=manifest)
    limits = Limits(disk_gb=(disk_need(manifest) + 1_000_000) / GB)
    unit = stage.unit("train_expert/0", segment=ids(40))
    reasons: list[str] = []

    def exchange(question: msg.Exchange) -> msg.Order:
        if question.failed:
            reasons.append(question.failed.reason)
            return STOP
        if question.working is None:
            return msg.Order("do this", unit=unit, heartbeat_s=0.01)
        if question.working.figures.get("step"):
            junk = stage.folder.path / "experts" / "junk"
            junk.write_bytes(bytes(int(limits.disk_gb * GB)))
        return msg.Order("carry on", heartbeat_s=0.01)

    stage.loopback.behaviour.exchange = exchange
    Program(stage.folder, Options(stage.corpus.folder, "cpu", 1, limits)).run()
    assert "--disk-gb" in reasons[0]
    assert str(stage.folder.path / "experts") in reasons[0]


def test_a_node_without_room_stops_after_three_units(stage: Stage) -> None:
    stage.script()
    experts = stage.folder.place("experts")
    (experts / "old").write_bytes(bytes(3_000_000_000 // 100))
    limits = Limits(disk_gb=disk_need(tiny_manifest(stage.corpus)) / GB)
    units = iter(stage.unit(f"train_expert/{n}", segment=ids(40)) for n in range(9))
    failed: list[str] = []

    def exchange(question: msg.Exchange) -> msg.Order:
        if question.failed:
            failed.append(question.failed.unit_id)
        if question.working is None and not question.failed:
            return msg.Order("do this", unit=next(units))
        return msg.Order("well")

    stage.loopback.behaviour.exchange = exchange
    with pytest.raises(WorldError, match="--disk-gb"):
        Program(stage.folder, Options(stage.corpus.folder, "cpu", 1, limits)).run()
    assert len(failed) == WORLD_FAILURES_MAX - 1


# ------------------------------------------------------------------------------- share of time


class Time:
    """A clock that moves when somebody works or waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds * 1.1  # sleeping takes longer than asked for
        self.waited += seconds * 1.1


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("step_s", [0.0003, 0.05, 40.0])
def test_pauses_leave_the_share_that_was_asked_for(share: float, step_s: float) -> None:
    clock = Time()
    pace = Pace(share, clock.wait, lambda: clock.now)
    worked, steps = 0.0, 4000
    for _ in range(steps):
        clock.now += step_s
        worked += step_s
        pace.step()
    assert worked / (worked + clock.waited) == pytest.approx(share, rel=0.05)


def test_without_a_share_nobody_waits() -> None:
    clock = Time()
    pace = Pace(1.0, clock.wait, lambda: clock.now)
    clock.now = 100.0
    pace.step()
    assert clock.waited == 0.0


def test_a_unit_that_is_paced_gives_the_same_bytes(stage: Stage) -> None:
    unit = stage.unit("router_round/0/1", share=ids())
    free = stage.work(unit).finished
    began = time.process_time()
    limits = Limits(share=0.2)
    stage.script(
        msg.Order("do this", unit=unit),
        lambda question: msg.Order("taken", accepted=unit.unit_id, stop=True),
    )
    Program(stage.folder, Options(stage.corpus.folder, "cpu", 1, limits)).run()
    paced = stage.loopback.exchanges[-1].finished
    assert free is not None
    assert paced is not None
    assert paced.outputs == free.outputs
    assert time.process_time() > began


# ----------------------------------------------------------------------------------- memory

OVER = """
import sys
from smalltalk_fed.worksite.guard import cap_process_memory
cap_process_memory(float(sys.argv[1]))
block = bytearray(300_000_000)
print("allocated")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit is Linux's")
@pytest.mark.parametrize(("memory_gb", "code"), [(0.25, 1), (1.0, 0), (0, 0)])
def test_the_kernel_refuses_more_memory_than_the_limit(memory_gb: float, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OVER, str(memory_gb)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert ("MemoryError" in done.stderr) == (code == 1)


def test_the_estimate_splits_batches_as_training_does() -> None:
    assert (CACHED_TOKENS, CACHED_PARAMETERS) == (loop.CACHED_TOKENS, loop.CACHED_PARAMETERS)


# ---------------------------------------------------------------------------------- uploads


def test_uploads_go_no_faster_than_allowed_and_heartbeats_do_not_wait(
    served: Served, tmp_path: Path
) -> None:
    """By a clock of its own: each part waits until the ones before have had their time."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    outgoing = Outgoing(up_mbit=2.0, sleep=sleep, clock=lambda: now[0])
    folder = served.node_folder(tmp_path / "node")
    connection = Connection(folder, folder.identity(), Ledger(), outgoing)
    data = bytes(1_000_000)
    put_blob(connection, ref_of("parameters", data), "router_round/0/1", data)
    assert now[0] == pytest.approx(8 * (1_000_000 - 256 * 1024) / 2e6, rel=0.1)
    waited = now[0]
    connection.call(
        connection.stub.BlobState, pb.BlobStateRequest(digest=bytes(32), name="x"), "blob_state"
    )
    assert now[0] == waited
    connection.close()
    assert data in served.loopback.blobs.values()
