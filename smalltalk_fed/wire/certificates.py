"""The run's own certificate authority, and what its certificates say. P-256 throughout.

Rules: gRPC refuses Ed25519 certificates, hence P-256. A certificate's common name is the
node's id, its organisational unit the role (`server`, `node`, `operator`). Certificates
begin a day before they are made, so that a clock that is wrong by an hour still lets a
machine in, and be told so. Times are seconds since the Unix epoch and always passed in.
Who may have a certificate is the core's decision; expiry and revocation are checked on
every call by whoever holds the connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smalltalk_fed.errors import Malformed, Unauthenticated, UserError
from smalltalk_fed.wire.secret_files import private_folder, read_secret, write_secret
from smalltalk_fed.wire.x509_parts import (
    attribute,
    certificate_builder,
    key_sha256,
    read_certificate,
    read_request,
    subject_name,
    when,
)

SERVER_NAME = "smalltalk-coordinator"  # what nodes expect, whatever address they dial
CA_DAYS = 3650
NODE_DAYS = 30

KEY_FILE = "ca.key"
CERTIFICATE_FILE = "ca.pem"

Role = Literal["server", "node", "operator"]
PrivateKey = ec.EllipticCurvePrivateKey


# ------------------------------------------------------------------------------------ keys


def make_key() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS#8, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_from_pem(data: bytes, where: str) -> PrivateKey:
    """Raises UserError when `data`, read from `where`, is no P-256 key."""
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{where} holds no private key.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError(f"{where} holds no P-256 key.")
    return key


def make_request(key: PrivateKey, name: str) -> bytes:
    """A certificate request (PKCS#10, DER) for `key`, signed by it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(name[:64]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def public_key_sha256(data: bytes) -> str:
    """SHA-256 of the SubjectPublicKeyInfo of a request or certificate (DER or PEM).

    A request's own signature is checked: whoever made it has the key.

    Raises:
        Malformed: neither a request nor a certificate, or not for a P-256 key.
        Unauthenticated: the request is not signed by the key that it names.
    """
    try:
        return key_sha256(read_certificate(data).public_key())
    except Malformed:
        return key_sha256(read_request(data).public_key())


# ------------------------------------------------------------------------------ certificates


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says; times in seconds since the Unix epoch."""

    node_id: str  # the common name
    role: str
    serial: int
    key_sha256: str
    not_before: float
    not_after: float

    def problem(self, now: float) -> str:
        """Why it can't be used at `now`, or the empty string."""
        if now > self.not_after:
            return f"the certificate of {self.node_id} ended at {when(self.not_after)}"
        if now < self.not_before:
            return f"the certificate of {self.node_id} begins at {when(self.not_before)}"
        return ""


def certificate_facts(data: bytes) -> CertificateFacts:
    """Read a certificate (DER or PEM). Says nothing about who issued it.

    Raises:
        Malformed: it can't be read, or has no common name.
    """
    certificate = read_certificate(data)
    return CertificateFacts(
        node_id=attribute(certificate.subject, NameOID.COMMON_NAME),
        role=attribute(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME),
        serial=certificate.serial_number,
        key_sha256=key_sha256(certificate.public_key()),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def verify_issued_by(authority: bytes, certificate: bytes) -> None:
    """Check that `authority` (a CA certificate) signed `certificate`; DER or PEM, no times.

    Raises:
        Malformed: one of them can't be read.
        Unauthenticated: somebody else issued it.
    """
    try:
        read_certificate(certificate).verify_directly_issued_by(read_certificate(authority))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        raise Unauthenticated(
            "the certificate was not issued by this run's authority; join with a token of this run"
        ) from None


def to_der(certificate: bytes) -> bytes:
    """A certificate in DER, from DER or PEM. Raises Malformed."""
    return read_certificate(certificate).public_bytes(serialization.Encoding.DER)


def to_pem(certificate: bytes) -> bytes:
    """A certificate in PEM, from DER or PEM. Raises Malformed."""
    return read_certificate(certificate).public_bytes(serialization.Encoding.PEM)


class CertificateAuthority:
    """The run's authority: the one key that all its certificates hang on."""

    def __init__(self, key: PrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, common_name: str, now: float, days: float = CA_DAYS) -> CertificateAuthority:
        """A new authority; its certificate is small, because it travels in join tokens."""
        key = make_key()
        name = subject_name(common_name[:64])
        builder = certificate_builder(name, name, key.public_key(), now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Read what `save` wrote. Raises UserError when it is missing or open to others."""
        key = key_from_pem(read_secret(folder / KEY_FILE, "the authority's key"), KEY_FILE)
        certificate = read_certificate(read_secret(folder / CERTIFICATE_FILE, "its certificate"))
        if key_sha256(certificate.public_key()) != key_sha256(key.public_key()):
            raise UserError(f"{KEY_FILE} and {CERTIFICATE_FILE} in {folder} don't belong together.")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        """Write `ca.key` and `ca.pem`, both mode 0600."""
        private_folder(folder)
        write_secret(folder / KEY_FILE, key_to_pem(self._key))
        write_secret(folder / CERTIFICATE_FILE, self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The authority's certificate, DER; what a join token carries."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    def issue_server(
        self,
        key: PrivateKey,
        names_and_addresses: Iterable[str],
        now: float,
        days: float = CA_DAYS,
    ) -> bytes:
        """A server certificate (PEM) for `key`, good for `SERVER_NAME` and all that is given."""
        names: list[x509.GeneralName] = [x509.DNSName(SERVER_NAME)]
        for text in names_and_addresses:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(text)))
            except ValueError:
                if text != SERVER_NAME:
                    names.append(x509.DNSName(text))
        subject = subject_name(SERVER_NAME, "server")
        builder = certificate_builder(
            subject, self._certificate.subject, key.public_key(), now, days
        )
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False
        )
        return self._sign(builder)

    def issue_node(
        self, request: bytes, node_id: str, now: float, days: float = NODE_DAYS
    ) -> bytes:
        """A node's certificate (PEM) for the key in a certificate request (DER).

        Raises:
            Malformed: the request can't be read or is for another kind of key.
            Unauthenticated: it is not signed by its own key.
        """
        public = read_request(request).public_key()
        key_sha256(public)
        return self._issue_client(public, node_id, "node", now, days)

    def issue_operator(
        self, key: PrivateKey, now: float, days: float = CA_DAYS, name: str = "operator"
    ) -> bytes:
        """A certificate (PEM) with which `key` may use the admin service."""
        return self._issue_client(key.public_key(), name, "operator", now, days)

    def _issue_client(
        self, public: object, name: str, role: Role, now: float, days: float
    ) -> bytes:
        subject = subject_name(name, role)
        builder = certificate_builder(subject, self._certificate.subject, public, now, days)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False
        )
        return self._sign(builder)

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
