"""The enrolment port for nodes that are in: a new certificate for the old key, or the reason."""

from __future__ import annotations

import grpc
import pytest
from smalltalk_coordinator.enrolment_service import RENEW_GRACE_S
from support.served_run import Guest, ServedRun, outcome, run_methods

from smalltalk_fed.core import messages as msg
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.certificates import (
    NODE_DAYS,
    CertificateAuthority,
    certificate_facts,
    make_key,
    make_request,
    to_der,
)

DAY_S = 86400.0
BLOB_STATE = next(m for m in run_methods() if m.name == "BlobState")


def renew(run: ServedRun, guest: Guest, request: bytes = b"") -> Guest:
    """Ask for a new certificate; raises RpcError."""
    request = request or make_request(guest.key, "box")
    with run.enrolment() as stub:
        reply = stub.Renew(
            pb.RenewRequest(certificate=to_der(guest.certificate), certificate_request=request),
            timeout=30.0,
        )
    return Guest(reply.node_id, guest.key, reply.certificate)


def explain(run: ServedRun, guest: Guest) -> tuple[bool, str]:
    with run.enrolment() as stub:
        request = pb.ExplainRequest(certificate=to_der(guest.certificate))
        reply = stub.Explain(request, timeout=30.0)
    assert reply.now == run.clock.now()
    return reply.welcome, reply.reason


def aged(run: ServedRun, guest: Guest, seconds: float) -> Guest:
    """The same node with the certificate of so long ago."""
    request, made_at = make_request(guest.key, "box"), run.clock.now() - seconds
    old = run.folder.authority().issue_node(request, guest.node_id, made_at)
    return Guest(guest.node_id, guest.key, old)


def refused(run: ServedRun, guest: Guest, request: bytes = b"") -> str:
    with pytest.raises(grpc.RpcError) as caught:
        renew(run, guest, request)
    return str(caught.value.details())


def test_a_node_in_good_standing_renews_and_the_new_certificate_is_good(served: ServedRun) -> None:
    guest = served.enrol()
    assert explain(served, guest) == (True, "the certificate is valid")
    served.clock.advance((NODE_DAYS - 10) * DAY_S)
    renewed = renew(served, guest)
    facts = certificate_facts(renewed.certificate)
    assert facts.node_id == guest.node_id
    assert facts.key_sha256 == certificate_facts(guest.certificate).key_sha256
    assert facts.not_after == pytest.approx(served.clock.now() + NODE_DAYS * DAY_S, abs=1)


def test_a_certificate_that_ended_is_renewed_for_a_grace_time_and_not_after(
    served: ServedRun,
) -> None:
    enrolled = served.enrol()
    guest = aged(served, enrolled, NODE_DAYS * DAY_S + RENEW_GRACE_S - DAY_S)
    welcome, reason = explain(served, guest)
    assert not welcome
    assert "ended at" in reason
    assert renew(served, guest).node_id == guest.node_id
    guest = aged(served, enrolled, NODE_DAYS * DAY_S + RENEW_GRACE_S + DAY_S)
    assert refused(served, guest) == "the old certificate ended too long ago; ask for a new token"


def test_a_stolen_certificate_without_its_key_is_not_renewed(served: ServedRun) -> None:
    guest = served.enrol()
    said = refused(served, guest, make_request(make_key(), "thief"))
    assert said == "the request is for another key than the old certificate's"


def test_a_revoked_node_gets_no_new_certificate_and_the_reason(served: ServedRun) -> None:
    guest = served.enrol()
    served.ask(msg.Revoke(guest.node_id, "it lies"))
    says = f"node {guest.node_id} was shut out: it lies"
    assert refused(served, guest) == says
    assert explain(served, guest) == (False, says)


def test_a_revoked_key_does_not_come_back_with_its_old_token_nor_with_a_new_one(
    served: ServedRun,
) -> None:
    guest = served.enrol()
    served.ask(msg.Revoke(guest.node_id, "it lies"))
    with pytest.raises(grpc.RpcError, match=f"node {guest.node_id} is enrolled already"):
        served.enrol_again(guest)


def test_another_authoritys_certificate_is_explained_and_not_renewed(served: ServedRun) -> None:
    key, now = make_key(), served.clock.now()
    stranger = CertificateAuthority.create("another run", now)
    guest = Guest("n-1", key, stranger.issue_node(make_request(key, "box"), "n-1", now))
    says = "the certificate was not issued by this run's authority; join with a token of this run"
    assert refused(served, guest) == says
    assert explain(served, guest) == (False, says)


def test_the_old_certificate_stays_good_until_its_end(served: ServedRun) -> None:
    """A renewal's answer may get lost: the node goes on with what it has."""
    guest = served.enrol()
    renew(served, guest)
    with served.channel(guest) as channel:
        assert outcome(channel, BLOB_STATE)[0] == "INVALID_ARGUMENT"  # beyond the certificate
