"""The operator's side of the admin service: a gRPC client with the operator's certificate.

Talks to the coordinator that serves a run folder, from the machine that has the folder; of its
addresses the first that answers is used.
"""

from __future__ import annotations

import json
from typing import Any

import grpc

from smalltalk_fed import errors
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import SmalltalkError, WorldError
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import convert_admin, convert_measuring, convert_serving
from smalltalk_fed.wire.certificates import SERVER_NAME
from smalltalk_fed.wire.convert_measuring import Measured, Text
from smalltalk_fed.wire.convert_serving import Answered, Prompt
from smalltalk_fed.wire.limits import ANSWER_S
from smalltalk_fed.wire.secret_files import read_secret

TIMEOUT_S = 10.0
Asked = (
    msg.MakeInvite
    | msg.CancelInvite
    | msg.Revoke
    | msg.Readmit
    | msg.Pause
    | msg.Resume
    | msg.Withdraw
)
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
        self._credentials = grpc.ssl_channel_credentials(
            root_certificates=folder.authority().certificate_pem,
            private_key=read_secret(operator / "key.pem", "the operator's key"),
            certificate_chain=(operator / "cert.pem").read_bytes(),
        )
        self._left = list(folder.addresses.runs)
        self._dial()

    def _dial(self) -> None:
        self._address = self._left.pop(0)
        self._channel = grpc.secure_channel(
            self._address,
            self._credentials,
            options=(("grpc.ssl_target_name_override", SERVER_NAME),),
        )
        self._stub = pb_grpc.AdminStub(self._channel)

    def __enter__(self) -> OperatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> dict[str, Any]:
        """The run as plain data."""
        reply = self._call("Status", pb.StatusRequest())
        status: dict[str, Any] = json.loads(reply.json)
        return status

    def do(self, message: Asked) -> str:
        """Ask for something; returns what happened."""
        match message:
            case msg.MakeInvite():
                call, request = "Invite", convert_admin.invite_to_proto(message)
            case msg.CancelInvite():
                call, request = "CancelInvite", convert_admin.cancel_invite_to_proto(message)
            case msg.Revoke():
                call, request = "Revoke", convert_admin.revoke_to_proto(message)
            case msg.Readmit():
                call, request = "Readmit", convert_admin.readmit_to_proto(message)
            case msg.Pause():
                call, request = "Pause", convert_admin.pause_to_proto(message)
            case msg.Resume():
                call, request = "Resume", pb.ResumeRequest()
            case msg.Withdraw():
                call, request = "TakeOut", convert_serving.take_out_to_proto(message)
        return convert_admin.done_from_proto(self._call(call, request)).reason

    def generate(self, prompt: Prompt) -> Answered:
        """Let the node that has the prompt's expert answer it.

        Raises:
            PeerError: no node serves it now, or too many prompts wait.
            WorldError: its node went away or could not answer.
        """
        request = convert_serving.prompt_to_proto(prompt)
        reply = self._call("Generate", request, ANSWER_S + TIMEOUT_S)
        return convert_serving.answered_from_proto(reply)

    def measure(self, text: Text) -> Measured:
        """Let the node that has the text's expert measure it. Raises as `generate` does."""
        request = convert_measuring.text_to_proto(text)
        reply = self._call("Measure", request, ANSWER_S + TIMEOUT_S)
        return convert_measuring.measured_from_proto(reply)

    def _call(self, name: str, request: object, timeout_s: float = TIMEOUT_S) -> Any:
        while True:
            try:
                return getattr(self._stub, name)(request, timeout=timeout_s)
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
                if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    kind: type[SmalltalkError] = _BY_HINT.get(code.name, WorldError)
                    raise kind(details) from None
                if not self._left:
                    raise NotServing(
                        f"no coordinator answers at {' or '.join(self._folder.addresses.runs)}; "
                        f"start it with `smalltalk-coordinator serve {self._folder.path}`."
                    ) from None
            self._channel.close()
            self._dial()
