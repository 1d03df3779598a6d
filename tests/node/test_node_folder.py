"""The node folder: private, locked, whole; and the files beside it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from smalltalk_node.records import NodeStatus, Records

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import UserError
from smalltalk_fed.worksite.cache import BlobCache, ref_of
from smalltalk_fed.worksite.identity import Identity, NodeFolder

IDENTITY = Identity("n-1", "box", "a:1", "b:2")
WITH = (
    '{"node_id": "n", "name": "b", "run_address": "a:1", "enrolment_address": "b:2", '
    '"run_addresses": %s}'
)


def test_everything_in_it_is_private(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path / "node")
    folder.keep_identity(IDENTITY)
    folder.signing_key()
    folder.key()
    folder.next_incarnation(5.0)
    with folder.locked():
        pass
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert {path.name for path in folder.path.iterdir()} == {
        "node.json", "signing.key", "key.pem", "incarnation", "lock",
    }  # fmt: skip
    for path in folder.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_keys_are_made_once(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path)
    public = folder.signing_key().public_bytes
    numbers = folder.key().private_numbers()
    again = NodeFolder.open(tmp_path)
    assert again.signing_key().public_bytes == public
    assert again.key().private_numbers() == numbers


def test_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="chmod go-w"):
        NodeFolder.open(tmp_path)


def test_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("")
    with pytest.raises(UserError, match="is a file"):
        NodeFolder.open(tmp_path / "node")


def test_two_processes_don_t_share_a_folder(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from smalltalk_fed.worksite.identity import NodeFolder\n"
        "with NodeFolder.open(Path(sys.argv[1])).locked(): print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another smalltalk-node"), folder.locked():
            pass
        other.kill()
    with folder.locked():  # the kernel has dropped a dead process's lock
        pass


def test_folder_of_no_run_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smalltalk-node join TOKEN"):
        NodeFolder.open(tmp_path).identity()


def test_identity_survives_and_single_fields_change(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path)
    folder.keep_identity(IDENTITY)
    folder.remember(run_id="run-1", corpus="/text")
    assert NodeFolder.open(tmp_path).identity() == Identity(
        "n-1", "box", "a:1", "b:2", run_id="run-1", corpus="/text"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[1]",
        '{"node_id": "n"}',
        '{"odd": 1}',
        WITH % '"a:1"',
        WITH % "[1]",
        WITH % "3",
    ],
)
def test_damaged_identity_is_said(tmp_path: Path, text: str) -> None:
    folder = NodeFolder.open(tmp_path)
    folder.keep_identity(IDENTITY)
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        folder.identity()


def test_an_identity_of_an_older_version_is_read(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path)
    folder.keep_identity(IDENTITY)
    old = {"node_id": "n-1", "name": "box", "run_address": "a:1", "enrolment_address": "b:2",
           "run_id": "", "coordinator_key": "", "corpus": ""}  # fmt: skip
    (tmp_path / "node.json").write_text(json.dumps(old))
    assert folder.identity() == IDENTITY
    assert (IDENTITY.runs, IDENTITY.enrolments) == (("a:1",), ("b:2",))


def test_addresses_survive_and_the_one_that_answered_is_first(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path)
    folder.keep_identity(IDENTITY)
    folder.remember(run_address="c:1", run_addresses=("a:1", "c:1"), enrolment_addresses=("b:2",))
    identity = NodeFolder.open(tmp_path).identity()
    assert (identity.runs, identity.enrolments) == (("c:1", "a:1"), ("b:2",))


def test_incarnation_grows_even_if_the_clock_goes_back(tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path)
    first = folder.next_incarnation(1000.7)
    assert first == 1000
    assert folder.next_incarnation(1000.9) == 1001
    assert NodeFolder.open(tmp_path).next_incarnation(10.0) == 1002
    assert folder.next_incarnation(5000.0) == 5000


# ----------------------------------------------------------------------------------- cache


def filled(folder: Path, bytes_max: int, count: int = 4) -> tuple[BlobCache, list[BlobRef]]:
    cache, refs = BlobCache(folder, bytes_max), []
    for number in range(count):
        data = bytes([number]) * 100
        refs.append(ref_of("parameters", data))
        cache.put(refs[-1], data)
    return cache, refs


def no_fetch(ref: BlobRef, to: Path) -> None:
    raise AssertionError("fetched what is here")


def test_cache_gives_what_was_put_and_fetches_what_was_not(tmp_path: Path) -> None:
    cache, refs = filled(tmp_path, 1000)
    assert cache.get(refs[2], no_fetch).read_bytes() == bytes([2]) * 100
    new = ref_of("share", b"new")
    assert cache.get(new, lambda ref, to: to.write_bytes(b"new")).read_bytes() == b"new"
    assert cache.get(new, no_fetch)


def test_cache_keeps_to_its_size_and_drops_the_least_used(tmp_path: Path) -> None:
    import os

    cache, refs = filled(tmp_path, 400)
    for age, ref in enumerate(refs):
        os.utime(tmp_path / ref.digest, (1000 + age, 1000 + age))
    cache.get(refs[0], no_fetch)  # used: now the youngest
    data = b"x" * 150
    cache.put(ref_of("parameters", data), data)
    assert [cache.has(ref) for ref in refs] == [True, False, False, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 400


def test_cache_never_drops_what_was_just_asked_for(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 10)
    ref = ref_of("weights", b"w" * 100)
    assert cache.get(ref, lambda ref, to: to.write_bytes(b"w" * 100)).exists()


def test_cache_keeps_what_is_needed_together_and_drops_it_afterwards(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 250)
    contents = {ref_of(f"router-{n}", bytes([n]) * 100): bytes([n]) * 100 for n in range(5)}
    cache.need(contents)
    for wanted, data in contents.items():
        cache.get(wanted, lambda ref, to, data=data: to.write_bytes(data))
    assert all(cache.has(ref) for ref in contents)
    cache.need([])
    cache.put(ref_of("parameters", b"new"), b"new")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 250


def test_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    cache, refs = filled(tmp_path, 1000, 1)
    (tmp_path / refs[0].digest).write_bytes(b"damaged")
    path = cache.get(refs[0], lambda ref, to: to.write_bytes(bytes(100)))
    assert path.read_bytes() == bytes(100)


def test_file_is_copied_into_the_cache(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    (tmp_path / "cache").mkdir()
    cache = BlobCache(tmp_path / "cache")
    path = cache.put(ref_of("weights", source), source)
    assert path.read_bytes() == b"data"
    assert source.exists()


# ---------------------------------------------------------------------------------- records


def test_status_is_replaced_whole_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [100.0]
    monkeypatch.setattr("smalltalk_node.records.time.monotonic", lambda: moment[0])
    records = Records(tmp_path, NodeStatus("n-1", "box"))
    path = tmp_path / "node-status.json"
    records.write_status()
    assert json.loads(path.read_text())["state"] == "joining"
    records.status.state = "working"
    records.write_status()
    assert json.loads(path.read_text())["state"] == "joining"
    records.write_status(at_once=True)
    assert json.loads(path.read_text())["state"] == "working"
    records.status.fraction = 0.5
    moment[0] += 1.0
    records.write_status()
    assert json.loads(path.read_text())["fraction"] == 0.5


def test_metrics_are_one_object_a_line(tmp_path: Path) -> None:
    records = Records(tmp_path, NodeStatus("n-1", "box", incarnation=7))
    records.metric("unit", unit="shard/1", figures={"loss": 1.5})
    records.metric("end", reason="done")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["unit", "end"]
    assert lines[0]["figures"] == {"loss": 1.5}
    assert lines[0]["incarnation"] == 7


def test_a_disk_that_refuses_does_not_end_the_work(tmp_path: Path) -> None:
    records = Records(tmp_path / "gone", NodeStatus("n-1", "box"))
    records.write_status(at_once=True)
    records.metric("end")


@pytest.mark.parametrize("data", [b"", b"x", b"-1", b"1.5", b"\xff", b"9" * 19, b"9" * 9999])
def test_a_damaged_incarnation_is_no_traceback(tmp_path: Path, data: bytes) -> None:
    folder = NodeFolder.open(tmp_path)
    (tmp_path / "incarnation").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        folder.next_incarnation(5.0)
