"""Sockets that don't behave: the coordinator closes them, serves the others, stays small."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest
from support import raw_sockets as raw
from support.deployment import wait_for
from support.real_coordinator import RealCoordinator, real_coordinator

from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.wire import limits
from smalltalk_fed.wire.limits_page import HALF_OPEN_KB

FILES = 1024  # of the coordinator with few
ATTEMPTS = 10_000
GROWTH_MB = 100  # that any of the small attacks may cost


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCoordinator]:
    with real_coordinator(tmp_path_factory.mktemp("raw"), 2, run={"experts": 2}) as made:
        yield made


@contextlib.contextmanager
def unharmed(coordinator: RealCoordinator, growth_mb: float = GROWTH_MB) -> Iterator[None]:
    """An honest node's connection works before, while, and after; memory stays low."""
    node, before_mb = coordinator.nodes[0], coordinator.memory_mb()
    with coordinator.channel(node) as channel:
        run = pb_grpc.RunStub(channel)
        run.Join(node.join(coordinator.folder.manifest), timeout=20)
        yield
        run.Exchange(pb.ExchangeRequest(incarnation=1, wants_work=False), timeout=20)
    serves(coordinator)
    grown_mb = coordinator.memory_mb("VmHWM") - before_mb
    assert grown_mb < growth_mb, f"{grown_mb:.0f} MB more at the highest"


def serves(coordinator: RealCoordinator) -> None:
    """A new connection is served."""
    node = coordinator.nodes[0]
    with coordinator.channel(node) as channel:
        pb_grpc.RunStub(channel).Join(node.join(coordinator.folder.manifest), timeout=30)


@pytest.mark.parametrize("port", ["run", "enrolment"])
@pytest.mark.parametrize(
    "said",
    [
        raw.noise(4096),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        raw.PREFACE + raw.frame(raw.SETTINGS, 0, 0, b""),  # HTTP/2 without TLS
        b"\x16\x03\x01\xff\xff" + raw.noise(1000),  # a TLS record that is none
    ],
)
def test_what_is_no_tls_is_closed_at_once(
    coordinator: RealCoordinator, port: str, said: bytes
) -> None:
    with unharmed(coordinator), ExitStack() as stack:
        connections = [stack.enter_context(raw.dial(coordinator.address(port))) for _ in range(50)]
        for connection in connections:
            with contextlib.suppress(OSError):  # closed before all was said
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: len(raw.closed(connections)) == 50, "all to be closed", 20)


def test_noise_after_the_handshake_is_closed_at_once(coordinator: RealCoordinator) -> None:
    with unharmed(coordinator), ExitStack() as stack:
        connections = []
        for node in (coordinator.nodes[1], None):
            for _ in range(10):
                connection = stack.enter_context(raw.dial_tls(coordinator, node))
                connection.sendall(raw.noise(1000))
                connections.append(connection)
        wait_for(lambda: len(raw.closed(connections)) == 20, "all to be closed", 20)


@pytest.mark.parametrize("as_node", [True, False])
def test_giant_headers_end_the_call_or_the_connection(
    coordinator: RealCoordinator, as_node: bool
) -> None:
    """One header of a megabyte, and a hundred megabytes of headers that never end."""
    node = coordinator.nodes[1] if as_node else None
    path = raw.header(b":method", b"POST") + raw.header(b":path", b"/smalltalk.v1.Run/Join")
    giant = path + raw.header(b"x-giant", b"a" * (1 << 20))
    many = raw.header(b"x-many", b"b" * 8000) * 2
    with unharmed(coordinator), ExitStack() as stack:
        connection = stack.enter_context(raw.dial_tls(coordinator, node))
        connection.sendall(raw.PREFACE + raw.frame(raw.SETTINGS, 0, 0, b""))
        with contextlib.suppress(OSError):
            connection.sendall(raw.frame(raw.HEADERS, 0, 1, giant[:16384]))
            for start in range(16384, len(giant), 16384):
                part = giant[start : start + 16384]
                connection.sendall(raw.frame(raw.CONTINUATION, 0, 1, part))
        endless = stack.enter_context(raw.dial_tls(coordinator, node))
        endless.sendall(raw.PREFACE + raw.frame(raw.SETTINGS, 0, 0, b""))
        with contextlib.suppress(OSError):
            endless.sendall(raw.frame(raw.HEADERS, 0, 1, path))
            for _ in range(100 * (1 << 20) // len(many)):
                endless.sendall(raw.frame(raw.CONTINUATION, 0, 1, many))


def test_large_metadata_is_refused(coordinator: RealCoordinator) -> None:
    node = coordinator.nodes[0]
    with unharmed(coordinator), coordinator.channel(coordinator.nodes[1]) as channel:
        run = pb_grpc.RunStub(channel)
        large = (("x-large", "a" * (3 * limits.HEADERS_BYTES_MAX)),)
        with pytest.raises(grpc.RpcError):
            run.Join(node.join(coordinator.folder.manifest), metadata=large, timeout=20)


def test_a_message_that_is_packed_is_not_unpacked(coordinator: RealCoordinator) -> None:
    """Three hundred kilobytes would become three hundred megabytes."""
    with unharmed(coordinator), coordinator.channel(coordinator.nodes[1]) as channel:
        bomb = channel.unary_unary("/smalltalk.v1.Run/Exchange")
        with pytest.raises(grpc.RpcError):
            bomb(bytes(250_000_000), compression=grpc.Compression.Gzip, timeout=60)


def test_a_message_over_the_limit_is_refused_unread(coordinator: RealCoordinator) -> None:
    with unharmed(coordinator), coordinator.channel(coordinator.nodes[1]) as channel:
        call = channel.unary_unary("/smalltalk.v1.Run/Exchange")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(50_000_000), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


def test_connections_over_the_cap_are_closed_and_those_that_are_there_go_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("capped")
    with real_coordinator(path, 1, files=FILES, run={"experts": 2}) as coordinator:
        assert f"{FILES} open files are allowed" in coordinator.log.read_text()
        with unharmed(coordinator), ExitStack() as stack:
            idle = [stack.enter_context(raw.dial(coordinator.address())) for _ in range(FILES)]
            over = wait_for(lambda: raw.closed(idle), "some to be closed", 20)
            assert coordinator.files() < FILES
            wait_for(lambda: len(raw.closed(idle)) > FILES // 4, "all over the cap", 20)
            assert len(over) < FILES
            stack.close()
            wait_for(lambda: serves(coordinator) is None, "room again", 20)


@pytest.mark.slow
def test_half_open_and_slow_handshakes_are_closed_in_time(coordinator: RealCoordinator) -> None:
    """Nothing at all, half a ClientHello, no more after it, and HTTP/2's preface byte by byte."""
    hello = raw.client_hello()
    starts: list[Callable[[], socket.socket]] = []
    for port in ("run", "enrolment"):
        for said in (b"", hello[: len(hello) // 2], hello):
            starts.append(lambda port=port, said=said: dialled(coordinator, port, said))
    with unharmed(coordinator), ExitStack() as stack:
        began = time.monotonic()
        half_open = [stack.enter_context(start()) for start in starts for _ in range(50)]
        slow: list[ssl.SSLSocket] = []
        for node in (coordinator.nodes[1], None):
            slow += [stack.enter_context(raw.dial_tls(coordinator, node)) for _ in range(10)]
        sent = 0

        def all_closed() -> bool:
            nonlocal sent
            if time.monotonic() - began > sent and sent < len(raw.PREFACE):
                for connection in slow:
                    with contextlib.suppress(OSError):
                        connection.sendall(raw.PREFACE[sent : sent + 1])
                sent += 1
                serves(coordinator)  # meanwhile
            return len(raw.closed(half_open + list(slow))) == len(half_open) + len(slow)

        wait_for(all_closed, "all to be closed", limits.HANDSHAKE_S + 15)


def dialled(coordinator: RealCoordinator, port: str, said: bytes) -> socket.socket:
    connection = raw.dial(coordinator.address(port))
    connection.sendall(said)
    return connection


@pytest.mark.slow
def test_ten_thousand_connections_cost_what_the_docs_say(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Half of them are let in, none is served; memory is bounded by the caps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < ATTEMPTS + 1000:
        pytest.skip(f"needs {ATTEMPTS + 1000} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, ATTEMPTS + 1000), hard))
    path = tmp_path_factory.mktemp("many")
    caps = limits.CONNECTIONS_MAX + limits.NEWCOMERS_MAX
    bound_mb = caps * HALF_OPEN_KB / 1000
    hello = raw.client_hello()
    with real_coordinator(path, 1, run={"experts": 2}) as coordinator:
        with unharmed(coordinator, bound_mb), ExitStack() as stack:
            connections = []
            for number in range(ATTEMPTS):
                with contextlib.suppress(OSError):
                    port = "enrolment" if number % 10 == 0 else "run"
                    connection = stack.enter_context(raw.dial(coordinator.address(port)))
                    connections.append(connection)
                    connection.sendall(hello)
            wait_for(
                lambda: len(raw.closed(connections)) >= len(connections) - caps,
                "those over the caps to be closed",
                60,
            )
            assert len(connections) == ATTEMPTS
        assert coordinator.files() < caps + 100
