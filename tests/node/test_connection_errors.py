"""What a node is told when a call fails, over real sockets and TLS."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import Newcomer, NoAnswer
from smalltalk_node.joining import Renewal, enrol
from support.loopback_coordinator import Loopback, Served, refusing, serving

from smalltalk_fed import errors
from smalltalk_fed.core import messages as msg
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import CertificateAuthority, certificate_facts, make_request
from smalltalk_fed.worksite.identity import NodeFolder


def asked(connection: Connection) -> object:
    question = pb.BlobStateRequest(digest=bytes(32))
    return connection.call(connection.stub.BlobState, question, "blob_state", 10.0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAUTHENTICATED", errors.Unauthenticated),
        ("PERMISSION_DENIED", errors.Forbidden),
        ("FAILED_PRECONDITION", errors.Refused),
        ("INVALID_ARGUMENT", errors.Malformed),
        ("RESOURCE_EXHAUSTED", errors.TooLarge),
        ("INTERNAL", errors.WorldError),
        ("DEADLINE_EXCEEDED", NoAnswer),
    ],
)
def test_a_status_is_the_error_that_it_was_made_of(
    connection: Connection, loopback: Loopback, code: str, kind: type[Exception]
) -> None:
    loopback.behaviour.refusal = (grpc.StatusCode[code], "because of this")
    with pytest.raises(kind, match="because of this") as caught:
        asked(connection)
    assert type(caught.value) is kind


def test_a_refusal_for_speed_says_when_to_ask_again(
    connection: Connection, loopback: Loopback
) -> None:
    loopback.behaviour.slow_down["BlobState"] = 1
    with pytest.raises(errors.SlowDown, match="20 times a second") as caught:
        asked(connection)
    assert caught.value.wait_s == 0.01
    assert asked(connection)


def test_nobody_there_is_no_answer(served: Served, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        folder = served.node_folder(tmp_path)
        identity = replace(folder.identity(), run_address=address, enrolment_address=address)
        connection = Connection(folder, identity, Ledger())
        with pytest.raises(NoAnswer) as caught:
            asked(connection)
        said = f"no coordinator answers at {address} (Connection refused (111))."
        assert str(caught.value) == said
        connection.close()


def test_somebody_else_at_the_address_is_not_trusted(served: Served, tmp_path: Path) -> None:
    with serving() as other:
        token = replace(served.token(), enrolment_address=other.enrolment_address)
        with pytest.raises(errors.Unauthenticated, match="not the coordinator that the join token"):
            enrol(NodeFolder.open(tmp_path), token, "box")
        folder = served.node_folder(tmp_path / "enrolled")
        identity = replace(folder.identity(), run_address=other.run_address)
        connection = Connection(folder, identity, Ledger())
        with pytest.raises(errors.Unauthenticated, match="not the coordinator"):
            asked(connection)
        connection.close()


def test_a_refused_handshake_is_explained(served: Served, tmp_path: Path) -> None:
    """The TLS alert says nothing; the enrolment port does."""
    folder = served.node_folder(tmp_path)
    stranger = CertificateAuthority.create("stranger", time.time())
    folder.keep_certificate(
        stranger.issue_node(make_request(folder.key(), "b"), "n-1", time.time())
    )
    connection = Connection(folder, folder.identity(), Ledger())
    with pytest.raises(errors.Unauthenticated, match="not issued by this run's authority"):
        asked(connection)
    connection.close()


def test_the_reason_is_not_asked_for_again_and_again(
    served: Served, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.stop_run_port()
    served.loopback.behaviour.explanation = "the certificate has ended"
    with pytest.raises(errors.Unauthenticated, match="has ended"):
        asked(connection)
    with pytest.raises(NoAnswer):
        asked(connection)


def test_a_run_port_that_is_down_is_no_answer_though_the_other_is_up(
    served: Served, connection: Connection
) -> None:
    served.stop_run_port()
    with pytest.raises(NoAnswer):
        asked(connection)


@pytest.mark.parametrize("known", [False, True], ids=["never met", "met before"])
def test_a_coordinator_that_is_back_answers_the_next_call(
    served: Served, connection: Connection, known: bool
) -> None:
    """Each failed call would double the wait before the next one."""
    if known:
        assert asked(connection)
    served.stop_run_port()
    for _ in range(3):
        with pytest.raises(NoAnswer):
            asked(connection)
    served.start_run_port()
    assert asked(connection)


def test_a_long_poll_ends_when_interrupted_and_leave_still_works(
    connection: Connection, loopback: Loopback
) -> None:
    polling = threading.Event()

    def held(exchange: msg.Exchange) -> msg.Order:
        polling.set()
        loopback.released.wait(30)
        return msg.Order("nothing to do yet")

    loopback.behaviour.exchange = held
    ends: list[Exception] = []

    def poll() -> None:
        try:
            connection.exchange(msg.Exchange("n-1", 1), 60.0)
        except errors.SmalltalkError as error:
            ends.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    assert polling.wait(10)
    connection.interrupt()
    thread.join(10)
    assert [type(end) for end in ends] == [NoAnswer]
    with pytest.raises(NoAnswer):
        connection.exchange(msg.Exchange("n-1", 1), 60.0)  # none begins any more
    assert connection.leave(msg.Leave("n-1", 1, "bye"), 5.0) == msg.Left(())
    assert loopback.left == [msg.Leave("n-1", 1, "bye")]


def test_a_refused_exchange_says_why(connection: Connection, loopback: Loopback) -> None:
    def refuse(exchange: msg.Exchange) -> msg.Order:
        raise refusing(grpc.StatusCode.FAILED_PRECONDITION, "join again")

    loopback.behaviour.exchange = refuse
    with pytest.raises(errors.Refused, match="join again"):
        connection.exchange(msg.Exchange("n-1", 1), 10.0)


def test_both_ends_count_the_same_bytes(connection: Connection, loopback: Loopback) -> None:
    loopback.behaviour.exchange = lambda exchange: msg.Order("nothing to do yet", wait_s=3.0)
    connection.exchange(msg.Exchange("n-1", 1), 10.0)
    asked(connection)
    connection.leave(msg.Leave("n-1", 1, "bye"), 10.0)
    assert connection.ledger.table() == loopback.ledger.table()
    assert {row.kind for row in connection.ledger.table()} == {"exchange", "blob_state", "leave"}


def test_enrolment_makes_a_node_folder(served: Served, tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path / "node")
    identity = enrol(folder, served.token(), "box")
    assert folder.identity() == identity
    assert certificate_facts(folder.certificate).node_id == identity.node_id
    connection = Connection(folder, identity, Ledger())
    assert asked(connection)
    connection.close()
    with pytest.raises(errors.UserError, match="already"):
        enrol(folder, served.token(), "box")


def test_a_refused_token_leaves_a_folder_that_can_try_again(served: Served, tmp_path: Path) -> None:
    folder = NodeFolder.open(tmp_path / "node")
    with pytest.raises(errors.Unauthenticated, match="not made by this run"):
        enrol(folder, served.token(b"f" * 16), "box")
    assert not folder.enrolled
    assert enrol(folder, served.token(), "box").name == "box"


def test_clock_of_the_coordinator_is_told(served: Served, tmp_path: Path) -> None:
    served.loopback.behaviour.clock_s = 3600.0
    folder = served.node_folder(tmp_path)
    with Newcomer(served.enrolment_address, folder.authority) as newcomer:
        reply = newcomer.explain(folder.certificate)
    assert reply.welcome
    assert 3500 < reply.now - time.time() < 3700


def test_a_certificate_that_ends_soon_is_renewed_for_the_same_key(
    served: Served, tmp_path: Path
) -> None:
    folder = served.node_folder(tmp_path, days=3)
    old = certificate_facts(folder.certificate)
    connection = Connection(folder, folder.identity(), Ledger())
    Renewal(folder, connection).when_due(time.time())
    new = certificate_facts(folder.certificate)
    assert new.key_sha256 == old.key_sha256
    assert new.not_after > old.not_after + 20 * 86400
    assert asked(connection)  # over the new connection
    Renewal(folder, connection).when_due(time.time())
    assert certificate_facts(folder.certificate) == new  # not again
    connection.close()


def test_a_renewal_that_nobody_answers_waits(served: Served, tmp_path: Path) -> None:
    folder = served.node_folder(tmp_path, days=3)
    old = folder.certificate
    connection = Connection(folder, folder.identity(), Ledger())
    served.servers[1].stop(0).wait()
    Renewal(folder, connection).when_due(time.time())
    assert folder.certificate == old
    connection.close()
