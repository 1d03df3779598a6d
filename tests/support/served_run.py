"""A real coordinator inside the test: its host, services and ports; the clock is the test's.

It runs in a thread of its own, so that tests talk to it as nodes do, over sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from smalltalk_coordinator.listening import Listeners
from smalltalk_coordinator.server import make_gates, make_listeners
from support.deployment import free_port
from support.tiny_run import tiny_manifest

from smalltalk_fed.core import messages as msg
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.status import run_status
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import (
    SERVER_NAME,
    PrivateKey,
    key_to_pem,
    make_key,
    make_request,
    to_pem,
)
from smalltalk_fed.wire.token import new_secret, secret_sha256

T = TypeVar("T")
SOON_S = 30.0
# A connection of its own for each channel: a handshake with what is shown now.
OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),
)


def free_addresses(pairs: int = 1) -> Addresses:
    """Free ports on loopback."""
    runs = [f"127.0.0.1:{free_port()}" for _ in range(pairs)]
    return Addresses.of(runs, [f"127.0.0.1:{free_port()}" for _ in range(pairs)])


def make_served_folder(path: Path, corpus: TokenCorpus, addresses: Addresses) -> RunFolder:
    """A run folder whose certificates are valid now."""
    config = tiny_manifest(corpus).config
    return RunFolder.create(path, config, "# tiny\n", corpus.folder, addresses, now=time.time())


@dataclass(frozen=True)
class Guest:
    """Who dials: a key, a certificate (PEM), and whose it is."""

    node_id: str
    key: PrivateKey
    certificate: bytes


class ServedRun:
    """Made by `served_run`."""

    def __init__(self, folder: RunFolder, clock: ManualClock) -> None:
        self.folder, self.clock = folder, clock
        self.decisions: list[msg.Decision] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.host: Host
        self.listeners: Listeners

    # ------------------------------------------------------------------------- begin and end

    def start(self) -> None:
        """Serve; also after `stop`, as a restarted process would."""
        self.do(self._start())

    def stop(self) -> None:
        """End in good order."""
        self.do(self._stop())

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._journal = Journal(self.folder.journal)
        self.host = Host(
            self.folder.manifest,
            self._journal,
            self.folder.blobs,
            self.clock,
            on_decision=self.decisions.append,
            audit_secret=self.folder.audit_secret(),
            executor=ThreadPoolExecutor(1),
        )
        gates = make_gates(self.folder.manifest)
        self.listeners = make_listeners(self.folder, self.host, Ledger(), self.status, gates)
        await self.listeners.start()
        self.host.start()

    async def _stop(self) -> None:
        await self.host.stop()
        await self.listeners.stop()
        self._journal.close()

    # -------------------------------------------------------------------------------- inside

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the coordinator's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SOON_S)

    def ask(self, message: msg.Request) -> Any:
        """Hand a message to the core."""
        return self.do(self.host.ask(message))

    def status(self) -> dict[str, Any]:
        """The run's status."""
        return run_status(self.host.coordinator, self.clock.now())

    # ------------------------------------------------------------------------------- outside

    def enrol(self, name: str = "box") -> Guest:
        """Let a new key in, over the enrolment port."""
        return self._let_in(make_key(), name)

    def enrol_again(self, guest: Guest) -> Guest:
        """A new invitation for the same key."""
        return self._let_in(guest.key, "box")

    def _let_in(self, key: PrivateKey, name: str) -> Guest:
        secret = new_secret()
        self.ask(msg.MakeInvite(secret_sha256(secret), self.clock.now() + 3600))
        with self.enrolment() as stub:
            request = pb.EnrolRequest(
                secret=secret, certificate_request=make_request(key, name), name=name
            )
            reply = stub.Enrol(request, timeout=SOON_S)
        return Guest(reply.node_id, key, reply.certificate)

    @contextlib.contextmanager
    def enrolment(self) -> Iterator[Any]:
        """The enrolment port's stub."""
        credentials = grpc.ssl_channel_credentials(self.folder.authority().certificate_pem)
        address = self.folder.addresses.enrolment
        with grpc.secure_channel(address, credentials, options=OPTIONS) as channel:
            yield pb_grpc.EnrolmentStub(channel)

    @contextlib.contextmanager
    def channel(self, guest: Guest | None, address: str = "") -> Iterator[grpc.Channel]:
        """A connection of its own to the run's port, as `guest`."""
        key = key_to_pem(guest.key) if guest else None
        chain = to_pem(guest.certificate) if guest else None
        roots = self.folder.authority().certificate_pem
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        with grpc.secure_channel(
            address or self.folder.addresses.run, credentials, options=OPTIONS
        ) as channel:
            yield channel

    def shown_certificate(self, address: str) -> bytes:
        """What the server shows at `address`, DER, to somebody who checks nothing."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with tls(address, context) as connection:
            shown = connection.getpeercert(binary_form=True)
        assert shown
        return shown


def run_methods() -> list[MethodDescriptor]:
    """Every call of the run's port: of nodes and of the operator."""
    services = (pb.DESCRIPTOR.services_by_name[name] for name in ("Run", "Admin"))
    return [method for service in services for method in service.methods]


def outcome(channel: grpc.Channel, method: MethodDescriptor) -> tuple[str, str]:
    """Make a call with an empty request; its status code and details."""
    kinds = {
        (False, False): channel.unary_unary,
        (True, False): channel.stream_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    service = method.containing_service.full_name
    call = kinds[(method.client_streaming, method.server_streaming)](
        f"/{service}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=lambda data: data,
    )
    request = method.input_type._concrete_class()
    try:
        answer = call(iter([request]) if method.client_streaming else request, timeout=SOON_S)
        if method.server_streaming:
            list(answer)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


@contextlib.contextmanager
def tls(address: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A bare TLS connection, without gRPC on top."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=SOON_S) as plain,
        context.wrap_socket(plain, server_hostname=SERVER_NAME) as connection,
    ):
        yield connection


@contextlib.contextmanager
def served_run(folder: RunFolder, clock: ManualClock | None = None) -> Iterator[ServedRun]:
    """Serve until the end."""
    run = ServedRun(folder, clock or ManualClock(time.time()))
    try:
        run.start()
        yield run
        run.stop()
    finally:
        run.close()
