"""The certificate that both ports show: issued here, renewed while serving, kept nowhere.

Rules: key and certificate are new at every start. gRPC asks at every handshake whether there
are newer ones, so a certificate that comes near its end, or a coordinator that got another
address, needs no restart: connections that stand go on, the next ones see the new certificate.
Nodes trust the run's authority and the fixed server name, so nothing changes for them. gRPC asks
from its own threads: a process that forks meanwhile can hang, so the coordinator's worker process
is spawned (Python does that by vfork), and nothing else of it forks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import grpc

from smalltalk_fed.host.clock import Clock
from smalltalk_fed.wire.certificates import (
    CertificateAuthority,
    certificate_facts,
    key_to_pem,
    make_key,
)

log = logging.getLogger("smalltalk.coordinator")

DAYS = 90.0
RENEW_BEFORE_S = 30 * 86400.0


class ServerCertificate:
    """Makes credentials for any number of ports. gRPC asks from threads of its own."""

    def __init__(
        self,
        authority: CertificateAuthority,
        names: Callable[[], tuple[str, ...]],
        clock: Clock,
        days: float = DAYS,
    ) -> None:
        """`names`: the coordinator's present names and addresses, asked at every handshake."""
        self._authority, self._names, self._clock, self._days = authority, names, clock, days
        self._lock = threading.Lock()
        self._made_for: tuple[str, ...] = ()
        self._renew_at = float("-inf")
        self._pair = (b"", b"")
        self._number = 0  # of the certificate, 1 for the first

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """For one port; `mutual`: whoever dials it must show a certificate of the authority."""
        port = _Port(self, self._authority.certificate_pem if mutual else None)
        return grpc.dynamic_ssl_server_credentials(port.newer(), port.newer, mutual)

    def current(self) -> tuple[int, tuple[bytes, bytes]]:
        """The certificate's number, its key and itself (PEM); a new one if it is time."""
        with self._lock:
            names, now = self._names(), self._clock.now()
            if now >= self._renew_at or names != self._made_for:
                key = make_key()
                certificate = self._authority.issue_server(key, names, now, self._days)
                if self._number:
                    log.info("the server's certificate is a new one, for %s", ", ".join(names))
                self._renew_at = certificate_facts(certificate).not_after - RENEW_BEFORE_S
                self._made_for, self._pair = names, (key_to_pem(key), certificate)
                self._number += 1
            return self._number, self._pair


class _Port:
    """What one port has been given last."""

    def __init__(self, certificate: ServerCertificate, roots: bytes | None) -> None:
        self._certificate, self._roots, self._number = certificate, roots, 0

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """The present certificate, or None if this port has it already."""
        number, pair = self._certificate.current()
        if number == self._number:
            return None
        self._number = number
        return grpc.ssl_server_certificate_configuration([pair], self._roots)
