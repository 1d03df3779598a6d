"""The caller's identity: out of its certificate alone, and looked at anew on every call."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from smalltalk_coordinator.calls import caller

from smalltalk_fed.errors import Forbidden, Unauthenticated
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.wire.certificates import NODE_DAYS, CertificateAuthority, make_key, make_request


@dataclass
class Connection:
    """As much of gRPC's context as says who is there."""

    certificate: bytes

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.certificate]} if self.certificate else {}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def authority(clock: ManualClock) -> CertificateAuthority:
    return CertificateAuthority.create("a run", clock.now())


def node(authority: CertificateAuthority, clock: ManualClock) -> Connection:
    request = make_request(make_key(), "a")
    return Connection(authority.issue_node(request, "n-0123", clock.now()))


def test_a_certificate_that_ends_is_refused_on_the_connection_that_it_opened(
    authority: CertificateAuthority, clock: ManualClock
) -> None:
    connection = node(authority, clock)
    assert caller(connection, clock) == "n-0123"
    clock.advance((NODE_DAYS - 1) * 86400)
    assert caller(connection, clock) == "n-0123"
    clock.advance(2 * 86400)
    with pytest.raises(Unauthenticated, match="renew it"):
        caller(connection, clock)


def test_a_role_is_not_lent_and_nobody_comes_without_a_certificate(
    authority: CertificateAuthority, clock: ManualClock
) -> None:
    connection = node(authority, clock)
    with pytest.raises(Forbidden, match="certificate of the operator"):
        caller(connection, clock, "operator")
    operator = Connection(authority.issue_operator(make_key(), clock.now()))
    assert caller(operator, clock, "operator")
    with pytest.raises(Forbidden, match="certificate of the node"):
        caller(operator, clock)
    with pytest.raises(Unauthenticated, match="wants a certificate"):
        caller(Connection(b""), clock)
