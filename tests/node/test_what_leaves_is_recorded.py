"""`run --record-egress`: each message that leaves is in the file, or it does not leave."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from smalltalk_node import cli
from smalltalk_node.connection import Connection
from smalltalk_node.options import Options
from smalltalk_node.outgoing import Outgoing
from smalltalk_node.program import Program
from smalltalk_node.recording import EgressRecorder
from smalltalk_node.transfer import put_blob
from support.loopback_coordinator import Served
from support.node_stage import STOP, Stage, ids

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.console import run_program
from smalltalk_fed.telemetry.ledger import FRAME_BYTES, Ledger
from smalltalk_fed.wire.egress_record import read_record, undeclared, uploads
from smalltalk_fed.worksite.cache import ref_of


def command(*arguments: object) -> int:
    return run_program(cli.app, cli.NAME, [str(argument) for argument in arguments])


def recorded_run(stage: Stage, path: Path) -> None:
    """One unit, from joining to the run's end."""
    unit = stage.unit("router_round/0/1", share=ids())
    accepted = msg.Order("taken", accepted=unit.unit_id, stop=True)
    stage.script(msg.Order("do this", unit=unit), accepted)
    options = Options(stage.corpus.folder, "cpu", 1, recorder=EgressRecorder(path))
    Program(stage.folder, options).run()


def test_every_message_that_the_coordinator_got_is_in_the_record(
    stage: Stage, tmp_path: Path
) -> None:
    recorded_run(stage, tmp_path / "left")
    messages = list(read_record(tmp_path / "left"))
    assert [undeclared(sent) for sent in messages if undeclared(sent)] == []
    calls = [sent.call for sent in messages]
    assert calls[0] == "Join"
    assert {"Exchange", "GetBlob", "BlobState", "PutBlob"} <= set(calls)
    # Byte for byte: what the coordinator counted as it came in.
    counted = sum(r.bytes for r in stage.loopback.ledger.table() if r.direction == "up")
    assert sum(len(sent.data) + FRAME_BYTES for sent in messages) == counted
    sent_blobs = {upload.digest: bytes(upload.data) for upload in uploads(messages)}
    share = stage.unit("router_round/0/1", share=ids()).inputs[0].digest
    assert sent_blobs == {d: b for d, b in stage.loopback.blobs.items() if d != share}


def test_the_record_is_its_owners_and_later_starts_add_to_it(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "left"
    recorded_run(stage, path)
    size = path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    recorded_run(stage, path)
    assert path.stat().st_size > size
    # What the run is, is asked at the first start alone.
    assert [sent.call for sent in read_record(path)].count("Join") == 3


def test_the_enrolment_port_is_recorded_too(served: Served, tmp_path: Path) -> None:
    folder = served.node_folder(tmp_path / "node")
    outgoing = Outgoing(EgressRecorder(tmp_path / "left"))
    connection = Connection(folder, folder.identity(), Ledger(), outgoing)
    connection.renew_certificate()
    connection.close()
    assert [sent.call for sent in read_record(tmp_path / "left")] == ["Renew"]


def test_what_can_not_be_recorded_does_not_leave(served: Served, tmp_path: Path) -> None:
    """The disk is full: an error with a sentence, and nothing arrived at the other end."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(small)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        folder = served.node_folder(tmp_path / "node")
        outgoing = Outgoing(EgressRecorder(small / "left"))
        connection = Connection(folder, folder.identity(), Ledger(), outgoing)
        data = bytes(200_000)
        with pytest.raises(WorldError, match="can't be recorded"):
            put_blob(connection, ref_of("parameters", data), "router_round/0/1", data)
        assert served.loopback.partial == served.loopback.blobs == {}
        (small / "full").write_bytes(bytes(_free(small)))
        question = pb.BlobStateRequest(digest=bytes(32), name="x" * 60)
        heard: list[object] = []

        def until_it_is_full() -> None:
            for _ in range(200):  # what is left of the last page
                heard[:] = served.loopback.ledger.table()
                connection.call(connection.stub.BlobState, question, "blob_state")

        with pytest.raises(WorldError, match="--record-egress"):
            until_it_is_full()
        assert served.loopback.ledger.table() == heard
        (small / "full").unlink()
        connection.call(connection.stub.BlobState, question, "blob_state")  # room again
        assert all(not undeclared(sent) for sent in read_record(small / "left"))
        connection.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_record_that_can_not_be_opened_ends_the_command(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.script(STOP)
    where = stage.folder.path / "nowhere" / "left"
    assert command("run", "--dir", stage.folder.path, "--record-egress", where) == 4
    assert "nothing leaves" in capsys.readouterr().err
    assert stage.loopback.joins == []


def test_the_command_holds_a_record_against_the_declarations(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "left"
    recorded_run(stage, record)
    assert command("egress", record, "--dir", stage.folder.path) == 0
    assert "All of it declared." in capsys.readouterr().out
    assert (
        command("egress", record, "--dir", stage.folder.path, "--find", "the secret", "--json") == 0
    )
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)["left"]}
    assert rows["PutBlob of parameters"]["messages"] == 1
    assert command("egress", record, "--find", stage.corpus.digest[:40]) == 1
    assert "was found in 1" in capsys.readouterr().err
    with record.open("ab") as file:
        file.write(b'{"at": 1.0, "call": "Telemetry", "bytes": 2}\nhi\n')
    assert command("egress", record) == 1
    assert "Telemetry" in capsys.readouterr().err
    assert command("egress", stage.folder.path / "node.json") == 2
