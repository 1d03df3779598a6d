"""The newcomers' port, server TLS only: a token and a request in, a certificate out.

The core decides who may enter; the certificate is signed once that is durable. A node whose
certificate ended renews it with its old key within `RENEW_GRACE_S`. `Explain` tells a node
why its certificate was refused, which a failed handshake can't. Wrong tokens are logged with
the address that they came from, and slowed (`guesses`).
"""

from __future__ import annotations

import logging

import grpc

from smalltalk_coordinator.calls import address_of, served
from smalltalk_coordinator.guesses import Guesses
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import known
from smalltalk_fed.errors import Forbidden, PeerError, Refused, Unauthenticated
from smalltalk_fed.host.host import Host
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire.certificates import (
    CertificateAuthority,
    CertificateFacts,
    certificate_facts,
    public_key_sha256,
    verify_issued_by,
)
from smalltalk_fed.wire.convert import enrol_from_proto

log = logging.getLogger("smalltalk.coordinator")

RENEW_GRACE_S = 90 * 86400.0


class EnrolmentService(pb_grpc.EnrolmentServicer):
    """Lets nodes in."""

    def __init__(self, host: Host, authority: CertificateAuthority) -> None:
        self._host = host
        self._authority = authority
        self._guesses = Guesses()

    @served
    async def Enrol(  # noqa: N802
        self, request: pb.EnrolRequest, context: grpc.aio.ServicerContext
    ) -> pb.EnrolReply:
        """A token's secret and a certificate request."""
        address, now = address_of(context), self._host.clock.now()
        wait_s = self._guesses.wait_s(address, now)
        if wait_s > 0:
            raise Refused(
                f"too many wrong tokens came from {address}; wait {max(1.0, wait_s):.0f} s, then "
                "try again with the whole line that the organiser's `invite` printed"
            )
        try:
            enrolled = await self._host.ask(enrol_from_proto(request))
        except Unauthenticated as error:
            times = self._guesses.wrong(address, now)
            log.warning("wrong token from %s (%d of late): %s", address, times, error)
            raise
        assert isinstance(enrolled, msg.Enrolled)
        self._guesses.right(address)
        return self._issue(request.certificate_request, enrolled.node_id)

    @served
    async def Renew(  # noqa: N802
        self, request: pb.RenewRequest, context: grpc.aio.ServicerContext
    ) -> pb.EnrolReply:
        """An old certificate of this run, and a request for the same key."""
        facts = self._of_a_node(request.certificate)
        if public_key_sha256(request.certificate_request) != facts.key_sha256:
            raise Unauthenticated("the request is for another key than the old certificate's")
        if self._host.clock.now() > facts.not_after + RENEW_GRACE_S:
            raise Unauthenticated("the old certificate ended too long ago; ask for a new token")
        return self._issue(request.certificate_request, facts.node_id)

    @served
    async def Explain(  # noqa: N802
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExplainReply:
        """Why a certificate is or is not welcome, and what time it is here."""
        now = self._host.clock.now()
        try:
            facts = self._of_a_node(request.certificate)
            if problem := facts.problem(now):
                raise Unauthenticated(f"{problem}; renew it, and check the clock")
        except PeerError as error:
            return pb.ExplainReply(reason=str(error), welcome=False, now=now)
        return pb.ExplainReply(reason="the certificate is valid", welcome=True, now=now)

    def _of_a_node(self, certificate: bytes) -> CertificateFacts:
        """What a certificate says if it is an enrolled node's, ended or not.

        Raises:
            PeerError: it is not, or the node was shut out.
        """
        verify_issued_by(self._authority.certificate_der, certificate)
        facts = certificate_facts(certificate)
        if facts.role != "node":
            raise Forbidden(f"the certificate of {facts.node_id} is not a node's")
        known(self._host.coordinator.state, facts.node_id)
        return facts

    def _issue(self, request: bytes, node_id: str) -> pb.EnrolReply:
        pem = self._authority.issue_node(request, node_id, self._host.clock.now())
        return pb.EnrolReply(node_id=node_id, certificate=pem)
