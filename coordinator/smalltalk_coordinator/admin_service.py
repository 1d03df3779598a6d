"""The operator's calls: status, invite, revoke, readmit, pause, resume, withdraw, prompts.

Whoever calls is looked at before what it says is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from smalltalk_coordinator.calls import caller, served
from smalltalk_coordinator.relay import NodeGone, Relay
from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.host import Host
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import convert_admin, convert_measuring, convert_serving
from smalltalk_fed.wire.convert_measuring import Losses, Measured
from smalltalk_fed.wire.convert_serving import Answered, Completion


class AdminService(pb_grpc.AdminServicer):
    """Serves whoever holds the operator's certificate."""

    def __init__(self, host: Host, status: Callable[[], dict[str, Any]], relay: Relay) -> None:
        self._host = host
        self._status, self._relay = status, relay

    @served
    async def Status(  # noqa: N802
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext
    ) -> pb.StatusReply:
        """The run as one JSON object."""
        caller(context, self._host.clock, "operator")
        relayed = {
            "serving_experts": self._relay.serving(),
            "prompts_waiting": self._relay.waiting,
        }
        status = {**self._status(), **relayed}
        return pb.StatusReply(json=json.dumps(status).encode())

    @served
    async def Invite(  # noqa: N802
        self, request: pb.InviteRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Make an invitation; its secret stays with the operator."""
        return await self._do(context, convert_admin.invite_from_proto, request)

    @served
    async def CancelInvite(  # noqa: N802
        self, request: pb.CancelInviteRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Void an invitation."""
        return await self._do(context, convert_admin.cancel_invite_from_proto, request)

    @served
    async def Revoke(  # noqa: N802
        self, request: pb.RevokeRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Shut a node out."""
        return await self._do(context, convert_admin.revoke_from_proto, request)

    @served
    async def Readmit(  # noqa: N802
        self, request: pb.ReadmitRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Let a quarantined node work again."""
        return await self._do(context, convert_admin.readmit_from_proto, request)

    @served
    async def Pause(  # noqa: N802
        self, request: pb.PauseRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Give out no more work."""
        return await self._do(context, convert_admin.pause_from_proto, request)

    @served
    async def Resume(  # noqa: N802
        self, request: pb.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Go on."""
        return await self._do(context, lambda request: msg.Resume(), request)

    @served
    async def TakeOut(  # noqa: N802
        self, request: pb.TakeOutRequest, context: grpc.aio.ServicerContext
    ) -> pb.AdminReply:
        """Withdraw experts."""
        return await self._do(context, convert_serving.take_out_from_proto, request)

    @served
    async def Generate(  # noqa: N802
        self, request: pb.Prompt, context: grpc.aio.ServicerContext
    ) -> pb.GenerateReply:
        """Let the node that has an expert answer a prompt."""
        caller(context, self._host.clock, "operator")
        prompt = convert_serving.prompt_from_proto(request)
        node_id, name, answer = await self._relay.ask(prompt)
        if not isinstance(answer, Completion) or len(answer.tokens) > prompt.tokens_max:
            raise NodeGone(f"node {node_id} answered with something else than was asked for")
        return convert_serving.answered_to_proto(Answered(node_id, name, answer.tokens))

    @served
    async def Measure(  # noqa: N802
        self, request: pb.Text, context: grpc.aio.ServicerContext
    ) -> pb.MeasureReply:
        """Let the node that has an expert measure a text."""
        caller(context, self._host.clock, "operator")
        node_id, name, answer = await self._relay.ask(convert_measuring.text_from_proto(request))
        if not isinstance(answer, Losses):
            raise NodeGone(f"node {node_id} answered with something else than was asked for")
        measured = Measured(node_id, name, answer.prefix_nll, answer.suffix_nll)
        return convert_measuring.measured_to_proto(measured)

    async def _do(
        self,
        context: grpc.aio.ServicerContext,
        read: Callable[[Any], msg.Request],
        request: Message,
    ) -> pb.AdminReply:
        caller(context, self._host.clock, "operator")
        done = await self._host.ask(read(request))
        assert isinstance(done, msg.Done)
        return convert_admin.done_to_proto(done)
