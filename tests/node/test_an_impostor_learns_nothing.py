"""Somebody else at the coordinator's address: refused before a byte of the secret is said.

The impostor is a bare TLS server, so that everything that reaches it is seen, before and after
decryption.
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from smalltalk_node.joining import enrol
from support.loopback_coordinator import Served

from smalltalk_fed.errors import SmalltalkError, Unauthenticated
from smalltalk_fed.wire.certificates import CertificateAuthority, key_to_pem, make_key
from smalltalk_fed.worksite.identity import NodeFolder

SECRET = b"0123456789abcdef"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # of HTTP/2, empty: a client waits for it before it asks


class Impostor:
    """Shows a certificate of `authority` for the coordinator's fixed name, and listens."""

    def __init__(self, folder: Path, authority: CertificateAuthority) -> None:
        key, chain = make_key(), folder / "impostor.pem"
        chain.write_bytes(key_to_pem(key) + authority.issue_server(key, [], time.time()))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        self._context.load_cert_chain(chain)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.raw = b""
        self.understood = b""
        self.hangs_up = False
        self.hung_up = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10.0)
                self._hear(connection)
            self.hung_up.set()

    def _hear(self, connection: socket.socket) -> None:
        came, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        spoken = self._context.wrap_bio(came, leaving, server_side=True)
        act = self._greet(spoken)
        try:
            while data := connection.recv(65536):
                self.raw += data
                came.write(data)
                try:
                    while True:
                        act()
                        act = self._read(spoken)
                except ssl.SSLWantReadError:
                    pass
                finally:
                    connection.sendall(leaving.read())
        except OSError:  # hung up, or our handshake was refused
            pass

    def _greet(self, spoken: ssl.SSLObject) -> Callable[[], None]:
        def greet() -> None:
            spoken.do_handshake()
            spoken.write(SETTINGS)

        return greet

    def _read(self, spoken: ssl.SSLObject) -> Callable[[], None]:
        def read() -> None:
            data = spoken.read(65536)
            if not data:
                raise OSError
            self.understood += data
            if self.hangs_up and SECRET in self.understood:
                raise OSError

        return read

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    made = Impostor(tmp_path, CertificateAuthority.create("impostor", time.time()))
    yield made
    made.close()


def test_join_tells_an_impostor_nothing(served: Served, impostor: Impostor, tmp_path: Path) -> None:
    token = replace(served.token(SECRET), enrolment_address=impostor.address)
    folder = NodeFolder.open(tmp_path / "node")
    with pytest.raises(Unauthenticated) as refused:
        enrol(folder, token, "box")
    assert f"whoever answers at {impostor.address} is not the coordinator" in str(refused.value)
    assert str(refused.value).count("\n") == 0
    assert impostor.hung_up.wait(10)
    assert impostor.understood == b""
    assert SECRET not in impostor.raw
    assert base64.b64encode(SECRET)[:16] not in impostor.raw
    assert not folder.enrolled
    assert enrol(folder, served.token(SECRET), "box")  # the secret was not used up


def test_the_listener_would_have_heard_it(served: Served, tmp_path: Path) -> None:
    """The control: with the run's own authority the node says everything."""
    listener = Impostor(tmp_path, served.loopback.authority)
    listener.hangs_up = True
    token = replace(served.token(SECRET), enrolment_address=listener.address)
    folder = NodeFolder.open(tmp_path / "node")
    with pytest.raises(SmalltalkError):  # it understands no gRPC, and hangs up
        enrol(folder, token, "box")
    listener.close()
    assert SECRET in listener.understood
    private = folder.key().private_numbers().private_value.to_bytes(32, "big")
    assert private not in listener.understood  # what it says has no key in it
    assert SECRET not in listener.raw
