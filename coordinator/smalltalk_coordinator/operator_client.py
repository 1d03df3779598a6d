"""The operator's side of the admin service: a gRPC client with the operator's certificate.

Talks to the coordinator that serves a run folder, from the machine that has the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc

from smalltalk_fed import errors
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import SmalltalkError, WorldError
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import convert_admin
from smalltalk_fed.wire.certificates import SERVER_NAME

TIMEOUT_S = 10.0
Asked = msg.MakeInvite | msg.CancelInvite | msg.Revoke | msg.Readmit | msg.Pause | msg.Resume
_BY_HINT = {
    kind.hint: kind
    for kind in (
        errors.Malformed,
        errors.Refused,
        errors.TooLarge,
        errors.Forbidden,
        errors.Unauthenticated,
        errors.OurError,
    )
}


class NotServing(WorldError):
    """Nobody serves the run folder at its address."""


class OperatorClient:
    """A connection to the coordinator of `folder`; use as a context manager."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        operator = folder.path / "operator"
        credentials = grpc.ssl_channel_credentials(
            root_certificates=folder.authority().certificate_pem,
            private_key=(operator / "key.pem").read_bytes(),
            certificate_chain=(operator / "cert.pem").read_bytes(),
        )
        self._channel = grpc.secure_channel(
            folder.addresses.run,
            credentials,
            options=(("grpc.ssl_target_name_override", SERVER_NAME),),
        )
        self._stub = pb_grpc.AdminStub(self._channel)

    def __enter__(self) -> OperatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> dict[str, Any]:
        """The run as plain data."""
        reply = self._call(self._stub.Status, pb.StatusRequest())
        status: dict[str, Any] = json.loads(reply.json)
        return status

    def do(self, message: Asked) -> str:
        """Ask for something; returns what happened."""
        match message:
            case msg.MakeInvite():
                call, request = self._stub.Invite, convert_admin.invite_to_proto(message)
            case msg.CancelInvite():
                call, request = (
                    self._stub.CancelInvite,
                    convert_admin.cancel_invite_to_proto(message),
                )
            case msg.Revoke():
                call, request = self._stub.Revoke, convert_admin.revoke_to_proto(message)
            case msg.Readmit():
                call, request = self._stub.Readmit, convert_admin.readmit_to_proto(message)
            case msg.Pause():
                call, request = self._stub.Pause, convert_admin.pause_to_proto(message)
            case msg.Resume():
                call, request = self._stub.Resume, pb.ResumeRequest()
        return convert_admin.done_from_proto(self._call(call, request)).reason

    def _call(self, method: Callable[..., Any], request: object) -> Any:
        try:
            return method(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise NotServing(
                    f"no coordinator answers at {self._folder.addresses.run}; start it with "
                    f"`smalltalk-coordinator serve {self._folder.path}`."
                ) from None
            kind: type[SmalltalkError] = _BY_HINT.get(code.name, WorldError)
            raise kind(details) from None
