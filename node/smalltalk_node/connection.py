"""The node's side of the run's port: calls that raise our errors, bytes that are counted.

Rules: where the coordinator does not answer at one of its addresses, the next call goes to the
next one, over a new line. A refusal because of a certificate that ended is mended by `standing`
and then looks like no answer: say it again. Work comes with the run's signature or not at all.
Every message is counted in the ledger with its frame. Blobs are `transfer`'s part.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import SmalltalkError, Unauthenticated
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert, convert_serving
from smalltalk_fed.wire.certificates import key_to_pem
from smalltalk_fed.wire.signing import verify_unit
from smalltalk_fed.worksite.identity import Identity, NodeFolder
from smalltalk_node.dialling import CALL_TIMEOUT_S, OPTIONS, NoAnswer, Stranger, error_of
from smalltalk_node.outgoing import Outgoing
from smalltalk_node.standing import Standing


@dataclass(frozen=True)
class Line:
    """What a call goes over: the address, and the counts of certificates and of broken lines."""

    address: str
    renewed: int
    broken: int


class Connection:
    """The run's port, mutual TLS. Any thread may call."""

    def __init__(
        self,
        folder: NodeFolder,
        identity: Identity,
        ledger: Ledger,
        outgoing: Outgoing | None = None,
    ) -> None:
        self._folder, self._identity, self.ledger = folder, identity, ledger
        self._outgoing = outgoing or Outgoing()
        self._standing = Standing(folder, identity, self._outgoing)
        self._signer: tuple[bytes, str] | None = None
        self._lock = threading.Lock()
        self._pending: set[grpc.Future] = set()
        self._interrupted = threading.Event()
        self._strangers: set[str] = set()  # addresses where somebody else answers
        self._at = 0  # in `identity.runs`
        self._broken = 0  # lines on which nobody answered
        self._before: grpc.Channel | None = None
        self._dial()

    def _dial(self) -> None:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self._folder.authority,
            private_key=key_to_pem(self._folder.key()),
            certificate_chain=self._folder.certificate,
        )
        address = self._identity.runs[self._at]
        channel = grpc.secure_channel(address, credentials, options=OPTIONS)
        self._channel, self._stub = channel, pb_grpc.RunStub(self._outgoing.through(channel))
        self.line = Line(address, self._standing.renewed, self._broken)

    @property
    def stub(self) -> pb_grpc.RunStub:
        """Where calls go: the present address, with the present certificate.

        A line that broke is dialled anew: on the old channel a call fails at once while gRPC
        waits before its next try, and that try gets on only while a call is out.
        """
        with self._lock:
            address = self._identity.runs[self._at]
            if self.line != Line(address, self._standing.renewed, self._broken):
                if self._before is not None:
                    self._before.close()
                self._before = self._channel  # calls on it go on until the next time
                self._dial()
            return self._stub

    @property
    def node_id(self) -> str:
        """This node's id."""
        return self._identity.node_id

    def renew_certificate(self) -> None:
        """Get a new certificate for the same key, and use it from now on.

        Raises:
            PeerError: refused, with the reason.
            WorldError: no answer.
        """
        self._standing.renew()

    def trust(self, coordinator_key: bytes, run_id: str) -> None:
        """Take work only with signatures of this raw Ed25519 key, for this run."""
        self._signer = (coordinator_key, run_id)

    def meet(self, identity: Identity) -> None:
        """Look for the coordinator at these addresses from now on."""
        with self._lock:
            self._identity = self._standing.identity = identity
            here = self.line.address
            self._at = identity.runs.index(here) if here in identity.runs else 0

    # ---------------------------------------------------------------------------------- calls

    def join(self, join: msg.Join) -> convert.Welcome:
        """Present this process; the answer has the signed manifest.

        Raises:
            PeerError: refused, with the reason.
            WorldError: no answer.
        """
        reply = self.call(self.stub.Join, convert.join_to_proto(join), "join")
        return convert.welcome_from_proto(reply)

    def exchange(self, exchange: msg.Exchange, timeout_s: float) -> msg.Order:
        """Say what was done and is being done; held by the coordinator while there is no work.

        Raises:
            PeerError: refused; or a unit came that the run's coordinator did not sign for us.
            WorldError: no answer.
        """
        request = convert.exchange_to_proto(exchange)
        reply = self.call(self.stub.Exchange, request, "exchange", timeout_s)
        order = convert.order_from_proto(reply)
        if order.unit is not None:
            if self._signer is None:
                raise Unauthenticated("work came before the run's manifest; join first")
            key, run_id = self._signer
            who = (run_id, self.node_id, exchange.incarnation)
            verify_unit(key, *who, order.unit, reply.unit_signature)
        return order

    def leave(self, leave: msg.Leave, timeout_s: float) -> msg.Left:
        """Say goodbye; works after `interrupt`, too."""
        self._interrupted.clear()
        request = convert.leave_to_proto(leave)
        return convert.left_from_proto(self.call(self.stub.Leave, request, "leave", timeout_s))

    def withdraw(self, withdraw: msg.Withdraw) -> str:
        """Take experts of this node out of the mixture; returns what came of it.

        Raises:
            PeerError: refused, with the reason.
            WorldError: no answer; it may be said again.
        """
        request = convert_serving.withdraw_to_proto(withdraw)
        return convert_serving.withdrawn_from_proto(
            self.call(self.stub.Withdraw, request, "withdraw")
        )

    def call(
        self,
        method: Any,
        request: Message,
        kind: str,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """One request and its reply, counted under `kind`.

        Raises:
            PeerError, WorldError: as the status says.
        """
        line = self.line
        self.ledger.message(self.node_id, kind, "up", request.ByteSize())
        # A future, so that Ctrl-C can end a long poll: a blocking call can't be cancelled.
        try:
            pending = method.future(request, timeout=timeout_s)
        except grpc.RpcError as error:  # it could not be turned into bytes, or not be recorded
            raise self.explained(error, line) from None
        with self._lock:
            self._pending.add(pending)
        try:
            if self._interrupted.is_set():
                pending.cancel()
            reply = pending.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self.explained(error, line) from None
        finally:
            with self._lock:
                self._pending.discard(pending)
        self._strangers.clear()
        self.ledger.message(self.node_id, kind, "down", reply.ByteSize())
        return reply

    def interrupt(self) -> None:
        """End the calls under way, and let none begin but `leave`. For signal handlers."""
        self._interrupted.set()
        for pending in list(self._pending):
            pending.cancel()

    def explained(
        self, error: grpc.RpcError | grpc.FutureCancelledError, line: Line
    ) -> SmalltalkError:
        """The error of ours that a failed call stands for; `line` is that of its begin.

        Where nobody answered, the enrolment port is asked for the reason, and the next call goes
        to the coordinator's next address.
        """
        if isinstance(error, grpc.FutureCancelledError):
            return NoAnswer("the call was cancelled.")
        if self._outgoing.problem is not None:
            return self._outgoing.problem
        found = error_of(error, line.address)
        if isinstance(found, Stranger):
            self._strangers.add(line.address)
            self._next_address(line)
            nowhere = self._strangers.issuperset(self._identity.runs)
            return found if nowhere else NoAnswer(str(found))
        if isinstance(found, NoAnswer) and error.code() is not grpc.StatusCode.CANCELLED:
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            self._next_address(line, broken=unavailable)
            if unavailable:
                return self._standing.behind_silence(found)
        if isinstance(found, Unauthenticated):
            return self._standing.behind_refusal(found, line.renewed)
        return found

    def _next_address(self, line: Line, broken: bool = False) -> None:
        """Dial another one next, unless a call that failed beside this one has said so."""
        with self._lock:
            addresses = self._identity.runs
            if line == self.line and line.address == addresses[self._at]:
                self._at = (self._at + 1) % len(addresses)
                self._broken += broken

    def close(self) -> None:
        """Hang up."""
        for channel in (self._before, self._channel):
            if channel is not None:
                channel.close()
