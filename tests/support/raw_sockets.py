"""Connections that don't behave: raw TCP and TLS to a coordinator's ports, below gRPC."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path

from support.real_coordinator import Enrolled, RealCoordinator

from smalltalk_fed.wire.certificates import SERVER_NAME

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, CONTINUATION = 1, 4, 9
END_HEADERS = 4


def dial(address: tuple[str, int], timeout_s: float = 20.0) -> socket.socket:
    """A TCP connection."""
    return socket.create_connection(address, timeout_s)


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls = context.wrap_bio(incoming, outgoing, server_hostname=SERVER_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def dial_tls(coordinator: RealCoordinator, node: Enrolled | None = None) -> ssl.SSLSocket:
    """A finished handshake, with HTTP/2 chosen: as `node` on its port, or as a newcomer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=coordinator.folder.authority().certificate_pem.decode())
    context.set_alpn_protocols(["h2"])
    if node is not None:
        with tempfile.TemporaryDirectory() as folder:
            key, certificate = Path(folder) / "key", Path(folder) / "certificate"
            key.write_bytes(node.key)
            certificate.write_bytes(node.certificate)
            context.load_cert_chain(certificate, key)
    plain = dial(coordinator.address("run" if node else "enrolment"))
    return context.wrap_socket(plain, server_hostname=SERVER_NAME)


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """An HTTP/2 frame."""
    return (
        struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body
    )


def header(name: bytes, value: bytes) -> bytes:
    """A header of HPACK that is in no table, unpacked."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    number, coded = number - 127, [127]
    while number >= 128:
        coded.append(128 + number % 128)
        number //= 128
    return bytes([*coded, number])


def closed(connections: Iterable[socket.socket]) -> list[socket.socket]:
    """Those of them that the other end has closed by now; what it said before is thrown away."""
    over = []
    for connection in connections:
        timeout_s = connection.gettimeout()
        try:
            connection.setblocking(False)
            while connection.recv(65536):
                pass
            over.append(connection)
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError:
            over.append(connection)
        finally:
            connection.settimeout(timeout_s)
    return over


def noise(size: int) -> bytes:
    """Bytes of nothing in particular."""
    return os.urandom(size)
