"""A coordinator with several addresses, or another one than before: nodes find it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import NoAnswer
from smalltalk_node.joining import Renewal, learn_addresses
from support.loopback_coordinator import Served, serving
from support.node_stage import KEY, STOP, Stage

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import Unauthenticated
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.certificates import certificate_facts
from smalltalk_fed.wire.signing import sign_manifest
from smalltalk_fed.worksite.identity import Identity, NodeFolder

QUESTION = pb.BlobStateRequest(digest=bytes(32))


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is bound and where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def ask(connection: Connection) -> object:
    return connection.call(connection.stub.BlobState, QUESTION, "blob_state", 10.0)


def welcome(stage: Stage, runs: tuple[str, ...], enrolments: tuple[str, ...]) -> convert.Welcome:
    data = stage.manifest.to_bytes()
    joined = msg.Joined("n-1", "part of the run")
    signed = (data, sign_manifest(KEY, data), KEY.public_bytes)
    return convert.Welcome(joined, *signed, runs, enrolments)


def test_the_next_address_is_dialled_when_one_does_not_answer(
    served: Served, tmp_path: Path, nobody: str
) -> None:
    folder = served.node_folder(tmp_path)
    identity = replace(
        folder.identity(), run_address=nobody, run_addresses=(nobody, served.run_address)
    )
    connection = Connection(folder, identity, Ledger())
    with pytest.raises(NoAnswer, match=f"no coordinator answers at {nobody}"):
        ask(connection)
    assert ask(connection)
    assert connection.line.address == served.run_address
    assert ask(connection)  # and stays there
    connection.close()


def test_all_addresses_are_tried_again_and_again(
    served: Served, tmp_path: Path, nobody: str
) -> None:
    folder = served.node_folder(tmp_path)
    there = served.run_address
    identity = replace(folder.identity(), run_addresses=(there, nobody))
    connection = Connection(folder, identity, Ledger())
    served.stop_run_port()
    tried = []
    for _ in range(4):
        with pytest.raises(NoAnswer):
            ask(connection)
        tried.append(connection.line.address)
    assert tried == [there, nobody, there, nobody]
    connection.close()


def test_calls_that_fail_together_move_on_once(served: Served, tmp_path: Path, nobody: str) -> None:
    folder = served.node_folder(tmp_path)
    runs = (nobody, served.run_address)
    identity = replace(folder.identity(), run_address=nobody, run_addresses=runs)
    connection = Connection(folder, identity, Ledger())
    methods = [connection.stub.BlobState for _ in range(4)]

    def fail(method: object) -> None:
        with pytest.raises(NoAnswer):
            connection.call(method, QUESTION, "blob_state", 10.0)

    threads = [threading.Thread(target=fail, args=(method,)) for method in methods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ask(connection)
    connection.close()


def test_somebody_else_at_one_of_them_is_passed_over(served: Served, tmp_path: Path) -> None:
    """An address that the coordinator had, and that now is another machine's."""
    with serving() as other:
        folder = served.node_folder(tmp_path, days=3)
        identity = replace(
            folder.identity(),
            run_address=other.run_address,
            run_addresses=(served.run_address,),
            enrolment_address=other.enrolment_address,
            enrolment_addresses=(served.enrolment_address,),
        )
        connection = Connection(folder, identity, Ledger())
        with pytest.raises(NoAnswer, match="is not the coordinator"):
            ask(connection)
        assert ask(connection)
        old = certificate_facts(folder.certificate)
        connection.renew_certificate()
        assert certificate_facts(folder.certificate).not_after > old.not_after
        connection.close()


def test_somebody_else_at_all_of_them_is_told_to_the_operator(
    served: Served, tmp_path: Path
) -> None:
    with serving() as other:
        folder = served.node_folder(tmp_path)
        runs = (other.run_address, other.enrolment_address)
        identity = replace(folder.identity(), run_address=runs[0], run_addresses=runs)
        connection = Connection(folder, identity, Ledger())
        with pytest.raises(NoAnswer):
            ask(connection)
        with pytest.raises(Unauthenticated, match="is not the coordinator"):
            ask(connection)
        connection.close()


def test_a_node_keeps_the_addresses_that_it_is_told(
    stage: Stage, served: Served, nobody: str
) -> None:
    runs = (nobody, served.run_address)
    enrolments = ("127.0.0.1:1", served.enrolment_address)
    stage.script(STOP)
    stage.loopback.behaviour.join = lambda join: welcome(stage, runs, enrolments)
    stage.program().run()
    identity = stage.folder.identity()
    assert identity.run_addresses == runs
    assert identity.runs == (served.run_address, nobody)  # where it answered comes first
    assert identity.enrolments == (served.enrolment_address, "127.0.0.1:1")


def test_a_moved_coordinator_is_found_with_what_was_told_before(
    stage: Stage, served: Served
) -> None:
    """Told of the new address while the old one was there; then the old one goes."""
    with serving(served.loopback.authority) as moved:
        runs = (served.run_address, moved.run_address)
        enrolments = (served.enrolment_address, moved.enrolment_address)
        stage.script(STOP)
        stage.loopback.behaviour.join = lambda join: welcome(stage, runs, enrolments)
        stage.program().run()
        for server in served.servers:
            server.stop(0).wait()
        there = Stage(moved, stage.corpus, stage.folder)
        there.script(STOP)
        there.loopback.behaviour.join = lambda join: welcome(stage, runs[1:], enrolments[1:])
        assert there.program().run() == STOP.reason
    identity = stage.folder.identity()
    assert (identity.runs, identity.enrolments) == (runs[1:], enrolments[1:])


def test_an_address_of_the_operators_own_is_left_alone(stage: Stage, served: Served) -> None:
    """Such as a tunnel's mouth: the coordinator does not know it, and nothing goes past it."""
    before = stage.folder.identity()
    stage.script(STOP)
    stage.loopback.behaviour.join = lambda join: welcome(stage, ("a:1",), ("b:1",))
    stage.program().run()
    after = stage.folder.identity()
    assert (after.runs, after.enrolments) == (before.runs, before.enrolments)


def test_an_older_coordinator_that_tells_none_changes_nothing(
    connection: Connection, served: Served, tmp_path: Path
) -> None:
    folder = NodeFolder.open(tmp_path / "node")
    before: Identity = folder.identity()
    reply = convert.Welcome(msg.Joined("n-1", ""), b"", b"", b"")
    assert learn_addresses(folder, connection, reply) == before


def test_a_renewal_looks_at_all_enrolment_addresses(
    served: Served, tmp_path: Path, nobody: str
) -> None:
    folder = served.node_folder(tmp_path, days=3)
    folder.remember(
        enrolment_address=nobody, enrolment_addresses=(nobody, served.enrolment_address)
    )
    old = folder.certificate
    connection = Connection(folder, folder.identity(), Ledger())
    Renewal(folder, connection).when_due(certificate_facts(old).not_after - 86400)
    assert folder.certificate != old
    connection.close()
