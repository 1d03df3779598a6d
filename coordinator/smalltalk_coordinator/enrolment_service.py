"""The newcomers' port, server TLS only: a token and a request in, a certificate out.

The core decides who may enter; the certificate is signed once that is durable. A node whose
certificate ended renews it with its old key within `RENEW_GRACE_S`. `Explain` tells a node
why its certificate was refused, which a failed handshake can't.
"""

from __future__ import annotations

import grpc

from smalltalk_coordinator.calls import served
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import known
from smalltalk_fed.errors import PeerError, Unauthenticated
from smalltalk_fed.host.host import Host
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire.certificates import (
    CertificateAuthority,
    certificate_facts,
    public_key_sha256,
    verify_issued_by,
)
from smalltalk_fed.wire.token import secret_sha256

RENEW_GRACE_S = 90 * 86400.0


class EnrolmentService(pb_grpc.EnrolmentServicer):
    """Lets nodes in."""

    def __init__(self, host: Host, authority: CertificateAuthority) -> None:
        self._host = host
        self._authority = authority

    @served
    async def Enrol(  # noqa: N802
        self, request: pb.EnrolRequest, context: grpc.aio.ServicerContext
    ) -> pb.EnrolReply:
        """A token's secret and a certificate request."""
        key_sha256 = public_key_sha256(request.certificate_request)
        message = msg.Enrol(secret_sha256(request.secret), key_sha256, request.name[:200])
        enrolled = await self._host.ask(message)
        assert isinstance(enrolled, msg.Enrolled)
        return self._issue(request.certificate_request, enrolled.node_id)

    @served
    async def Renew(  # noqa: N802
        self, request: pb.RenewRequest, context: grpc.aio.ServicerContext
    ) -> pb.EnrolReply:
        """An old certificate of this run, and a request for the same key."""
        verify_issued_by(self._authority.certificate_der, request.certificate)
        facts = certificate_facts(request.certificate)
        known(self._host.coordinator.state, facts.node_id)
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
            verify_issued_by(self._authority.certificate_der, request.certificate)
            facts = certificate_facts(request.certificate)
            known(self._host.coordinator.state, facts.node_id)
            if problem := facts.problem(now):
                raise Unauthenticated(f"{problem}; renew it, and check the clock")
        except PeerError as error:
            return pb.ExplainReply(reason=str(error), welcome=False, now=now)
        return pb.ExplainReply(reason="the certificate is valid", welcome=True, now=now)

    def _issue(self, request: bytes, node_id: str) -> pb.EnrolReply:
        pem = self._authority.issue_node(request, node_id, self._host.clock.now())
        return pb.EnrolReply(node_id=node_id, certificate=pem)
