"""Away for longer than the certificate lasts: the node renews it and goes on, or says why not."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import NoAnswer
from support.loopback_coordinator import Loopback, Served

from smalltalk_fed.errors import Forbidden, Unauthenticated
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import certificate_facts, make_request
from smalltalk_fed.worksite.identity import NodeFolder

DAY_S = 86400.0
QUESTION = pb.BlobStateRequest(digest=bytes(32))


def ask(connection: Connection) -> object:
    return connection.call(connection.stub.BlobState, QUESTION, "blob_state", 10.0)


def ended(served: Served, path: Path, days_ago: float = 5.0) -> NodeFolder:
    """A node folder whose certificate ended a while ago."""
    folder, authority = NodeFolder.open(path), served.loopback.authority
    made_at = time.time() - (30 + days_ago) * DAY_S
    old = authority.issue_node(make_request(folder.key(), "box"), "n-1", made_at)
    served.node_folder(path)
    folder.keep_certificate(old)
    return folder


def unwelcome(loopback: Loopback) -> None:
    """A certificate that has ended is not welcome, as with the real coordinator."""
    loopback.behaviour.looks_at_the_end = True


def test_a_handshake_refused_for_it_is_followed_by_a_renewal(
    served: Served, tmp_path: Path
) -> None:
    unwelcome(served.loopback)
    folder = ended(served, tmp_path)
    old = certificate_facts(folder.certificate)
    connection = Connection(folder, folder.identity(), Ledger())
    with pytest.raises(NoAnswer, match="had ended and was renewed"):
        ask(connection)
    assert ask(connection)
    new = certificate_facts(folder.certificate)
    assert new.key_sha256 == old.key_sha256
    assert new.not_after > time.time() + 29 * DAY_S
    connection.close()


def test_a_call_refused_for_it_on_an_open_connection_is_followed_by_a_renewal(
    served: Served, connection: Connection, tmp_path: Path
) -> None:
    assert ask(connection)
    folder = NodeFolder.open(tmp_path / "node")
    ends = certificate_facts(folder.certificate).not_after
    served.loopback.behaviour.clock_s = ends + DAY_S - time.time()  # the coordinator's clock
    served.loopback.behaviour.explanation = "the certificate of n-1 ended; renew it"
    refusal = (grpc.StatusCode.UNAUTHENTICATED, "the certificate of n-1 ended; renew it")
    served.loopback.behaviour.refusal = refusal
    with pytest.raises(NoAnswer, match="had ended and was renewed"):
        ask(connection)
    served.loopback.behaviour.refusal = None
    line = connection.line
    assert ask(connection)
    assert connection.line != line  # the new certificate is shown


def test_too_long_ago_is_told_to_the_operator(served: Served, tmp_path: Path) -> None:
    unwelcome(served.loopback)
    says = "the old certificate ended too long ago; ask for a new token"
    served.loopback.behaviour.renewal_refusal = (grpc.StatusCode.UNAUTHENTICATED, says)
    folder = ended(served, tmp_path, 100.0)
    connection = Connection(folder, folder.identity(), Ledger())
    with pytest.raises(Unauthenticated, match=says):
        ask(connection)
    connection.close()


def test_a_node_that_was_shut_out_meanwhile_is_told_so(served: Served, tmp_path: Path) -> None:
    unwelcome(served.loopback)
    says = "node n-1 was shut out: it lies"
    served.loopback.behaviour.renewal_refusal = (grpc.StatusCode.PERMISSION_DENIED, says)
    folder = ended(served, tmp_path)
    connection = Connection(folder, folder.identity(), Ledger())
    with pytest.raises(Forbidden, match=says):
        ask(connection)
    connection.close()


def test_another_refusal_than_for_the_certificate_stays_one(
    served: Served, connection: Connection
) -> None:
    refusal = (grpc.StatusCode.UNAUTHENTICATED, "the result is not signed by the right key")
    served.loopback.behaviour.refusal = refusal
    with pytest.raises(Unauthenticated, match="not signed"):
        ask(connection)
