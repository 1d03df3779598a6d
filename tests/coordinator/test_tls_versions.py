"""What the ports speak: TLS 1.3 between our own ends, 1.2 at the least."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from smalltalk_node.dialling import Newcomer
from support.served_run import Guest, ServedRun, tls

from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.wire.certificates import (
    CertificateAuthority,
    key_to_pem,
    make_key,
    to_pem,
)

OLD = ssl.TLSVersion.TLSv1_1
# Python warns of the versions that must be refused here.
pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")


@pytest.fixture
def guest(served: ServedRun) -> Guest:
    return served.enrol()


def client(run: ServedRun, guest: Guest, folder: Path) -> ssl.SSLContext:
    """A client that would take anything from TLS 1.0 on, with a good certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL itself refuses what is old
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=run.folder.authority().certificate_pem.decode())
    chain = folder / "chain.pem"
    chain.write_bytes(key_to_pem(guest.key) + to_pem(guest.certificate))
    context.load_cert_chain(chain)
    return context


def addresses(run: ServedRun) -> tuple[str, str]:
    return run.folder.addresses.run, run.folder.addresses.enrolment


def test_who_offers_all_versions_gets_the_newest(
    served: ServedRun, guest: Guest, tmp_path: Path
) -> None:
    for address in addresses(served):
        with tls(address, client(served, guest, tmp_path)) as connection:
            assert connection.version() == "TLSv1.3"
            assert connection.selected_alpn_protocol() == "h2"


def test_nothing_below_tls_1_2_is_accepted(served: ServedRun, guest: Guest, tmp_path: Path) -> None:
    context = client(served, guest, tmp_path)
    context.maximum_version = OLD
    for address in addresses(served):
        with pytest.raises((ssl.SSLError, ConnectionResetError)), tls(address, context):
            pass
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for address in addresses(served):
        with tls(address, context) as connection:
            assert connection.version() == "TLSv1.2"


class AnyVersion:
    """A TLS server that takes any version, and says which one came; one connection a time."""

    def __init__(self, folder: Path, newest: ssl.TLSVersion) -> None:
        authority, key = CertificateAuthority.create("any", time.time()), make_key()
        self.authority = authority.certificate_der
        chain = folder / "server.pem"
        chain.write_bytes(key_to_pem(key) + authority.issue_server(key, [], time.time()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(chain)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.versions: list[str | None] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    self.versions.append(connection.version())
            except (ssl.SSLError, OSError):
                self.versions.append(None)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize(
    ("newest", "spoken"), [(ssl.TLSVersion.MAXIMUM_SUPPORTED, "TLSv1.3"), (OLD, None)]
)
def test_a_node_speaks_tls_1_3_and_nothing_old(
    tmp_path: Path, newest: ssl.TLSVersion, spoken: str | None
) -> None:
    server = AnyVersion(tmp_path, newest)
    try:
        # The control: somebody who takes old versions does get one.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_verify_locations(cadata=to_pem(server.authority).decode())
        with tls(server.address, context) as connection:
            assert connection.version() == (spoken or "TLSv1.1")
        with Newcomer(server.address, server.authority) as node, pytest.raises(SmalltalkError):
            node.explain(b"")  # it is no gRPC server, whatever it speaks
        assert server.versions[1] == spoken
    finally:
        server.close()
