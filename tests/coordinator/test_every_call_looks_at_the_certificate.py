"""Every call of every service on the run's port: who may make it, and what the others are told.

The calls come from the protocol's own description, so a new one is tested as soon as it is there.
"""

from __future__ import annotations

import time

import grpc
import pytest
from support.served_run import Guest, ServedRun, outcome, run_methods

from smalltalk_fed.core import messages as msg
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.certificates import (
    NODE_DAYS,
    CertificateAuthority,
    key_from_pem,
    make_key,
    make_request,
)

DAY_S = 86400.0
OF_NODES = [m.name for m in run_methods() if m.containing_service.name == "Run"]
OF_THE_OPERATOR = [m.name for m in run_methods() if m.containing_service.name == "Admin"]


def operator(run: ServedRun) -> Guest:
    place = run.folder.path / "operator"
    key = key_from_pem((place / "key.pem").read_bytes(), "key.pem")
    return Guest("operator", key, (place / "cert.pem").read_bytes())


def told(channel: grpc.Channel, names: list[str]) -> dict[str, tuple[str, str]]:
    """Status and reason of each of these calls, over one connection."""
    return {m.name: outcome(channel, m) for m in run_methods() if m.name in names}


def codes(found: dict[str, tuple[str, str]]) -> set[str]:
    return {code for code, _ in found.values()}


def reasons(found: dict[str, tuple[str, str]]) -> set[str]:
    return {reason for _, reason in found.values()}


def let_in(channel: grpc.Channel) -> bool:
    """Whether a node's call gets beyond the certificate."""
    state = next(m for m in run_methods() if m.name == "BlobState")
    return outcome(channel, state)[0] == "INVALID_ARGUMENT"  # of an empty digest


def test_the_calls_are_all_there() -> None:
    assert set(OF_NODES) >= {"Join", "Exchange", "BlobState", "PutBlob", "GetBlob", "Leave"}
    assert set(OF_THE_OPERATOR) >= {"Status", "Invite", "CancelInvite", "Revoke", "Pause"}


def test_without_a_certificate_there_is_no_connection(served: ServedRun) -> None:
    with served.channel(None) as channel:
        assert codes(told(channel, OF_NODES + OF_THE_OPERATOR)) == {"UNAVAILABLE"}


def test_with_another_runs_certificate_there_is_no_connection(served: ServedRun) -> None:
    stranger, key = CertificateAuthority.create("another run", time.time()), make_key()
    node = stranger.issue_node(make_request(key, "box"), "n-1", time.time())
    with served.channel(Guest("n-1", key, node)) as channel:
        assert codes(told(channel, OF_NODES)) == {"UNAVAILABLE"}
    with served.channel(Guest("o", key, stranger.issue_operator(key, time.time()))) as channel:
        assert codes(told(channel, OF_THE_OPERATOR)) == {"UNAVAILABLE"}


def test_a_certificate_that_ends_is_refused_on_the_connection_that_stands(
    served: ServedRun,
) -> None:
    guest = served.enrol()
    with served.channel(guest) as channel, served.channel(operator(served)) as admin:
        assert let_in(channel)
        assert codes(told(admin, ["Status"])) == {"OK"}
        served.clock.advance((NODE_DAYS + 1) * DAY_S)
        found = told(channel, OF_NODES)
        assert codes(found) == {"UNAUTHENTICATED"}
        assert all(f"the certificate of {guest.node_id} ended at" in r for r in reasons(found))
        served.clock.advance(3650 * DAY_S)
        found = told(admin, OF_THE_OPERATOR)
        assert codes(found) == {"UNAUTHENTICATED"}
        assert all("ended at" in reason for reason in reasons(found))


def test_a_revoked_node_is_refused_from_its_next_call_on_and_told_why(served: ServedRun) -> None:
    guest, other = served.enrol(), served.enrol()
    with served.channel(guest) as channel, served.channel(other) as beside:
        assert let_in(channel)
        served.ask(msg.Revoke(guest.node_id, "it lies"))
        found = told(channel, OF_NODES)
        assert codes(found) == {"PERMISSION_DENIED"}
        assert reasons(found) == {f"node {guest.node_id} was shut out: it lies"}
        assert let_in(beside)


def test_a_restarted_coordinator_still_refuses_it(served: ServedRun) -> None:
    guest, other = served.enrol(), served.enrol()
    served.ask(msg.Revoke(guest.node_id, "it lies"))
    served.stop()
    served.start()
    with served.channel(guest) as channel, served.channel(other) as beside:
        assert reasons(told(channel, OF_NODES)) == {f"node {guest.node_id} was shut out: it lies"}
        assert let_in(beside)


def test_a_node_that_never_enrolled_here_is_refused(served: ServedRun) -> None:
    """A certificate of the run's authority, of which the journal (from a backup) knows nothing."""
    key, authority = make_key(), served.folder.authority()
    node = authority.issue_node(make_request(key, "box"), "n-unknown", time.time())
    with served.channel(Guest("n-unknown", key, node)) as channel:
        found = told(channel, OF_NODES)
        assert codes(found) == {"UNAUTHENTICATED"}
        assert all("not enrolled in this run" in reason for reason in reasons(found))


def test_the_operators_calls_need_the_operators_certificate(served: ServedRun) -> None:
    guest = served.enrol()
    with served.channel(guest) as channel:
        found = told(channel, OF_THE_OPERATOR)
    assert codes(found) == {"PERMISSION_DENIED"}
    says = f"{guest.node_id} may not do this; it needs a certificate of the operator"
    assert reasons(found) == {says}


def test_the_operator_is_no_node(served: ServedRun) -> None:
    with served.channel(operator(served)) as channel:
        found = told(channel, OF_NODES)
    assert codes(found) == {"PERMISSION_DENIED"}


def test_a_server_certificate_opens_nothing(served: ServedRun) -> None:
    """A stolen one, such as out of a memory dump, is no way in."""
    key = make_key()
    server = served.folder.authority().issue_server(key, ["127.0.0.1"], time.time())
    with served.channel(Guest("s", key, server)) as channel:
        assert codes(told(channel, OF_NODES)) <= {"UNAVAILABLE", "PERMISSION_DENIED"}


@pytest.mark.parametrize("role", ["operator", "server"])
def test_only_nodes_certificates_are_renewed(served: ServedRun, role: str) -> None:
    key, authority = make_key(), served.folder.authority()
    certificate = (
        authority.issue_operator(key, time.time())
        if role == "operator"
        else authority.issue_server(key, ["a"], time.time())
    )
    with served.enrolment() as stub, pytest.raises(grpc.RpcError) as refused:
        stub.Renew(
            pb.RenewRequest(certificate=certificate, certificate_request=make_request(key, "x"))
        )
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
