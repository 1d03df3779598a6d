"""Reading and building X.509 with `cryptography`: what `certificates` is made of.

Rules: bounded input, P-256 only, errors of ours. What a certificate means is
`certificates`' part.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from smalltalk_fed.errors import Malformed, Unauthenticated

MAX_CERTIFICATE_BYTES = 16384
BACKDATE_S = 86400.0
# What the library raises, early or late, for what is no certificate or of a kind that it lacks.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def subject_name(common_name: str, unit: str = "") -> x509.Name:
    """A common name, and the role as organisational unit."""
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if unit:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name(parts)


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, public: object, now: float, days: float
) -> x509.CertificateBuilder:
    """All of a certificate but its extensions and signature. Raises Malformed for other keys."""
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise Malformed("certificates of this project are for P-256 keys")
    moment = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(seconds=BACKDATE_S))
        .not_valid_after(moment + timedelta(days=days))
    )


def read_certificate(data: bytes) -> x509.Certificate:
    """DER or PEM, for a P-256 key and with readable names. Raises Malformed."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise Malformed("a certificate of this project is never so large")
    try:
        if data.startswith(b"-----"):
            certificate = x509.load_pem_x509_certificate(data)
        else:
            certificate = x509.load_der_x509_certificate(data)
        _check_parts(certificate)
    except _UNREADABLE:
        raise Malformed("this is not a certificate") from None
    return certificate


def read_request(data: bytes) -> x509.CertificateSigningRequest:
    """DER or PEM, for a P-256 key.

    Raises:
        Malformed: it is something else.
        Unauthenticated: its own key did not sign it.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise Malformed("a certificate request of this project is never so large")
    try:
        if data.startswith(b"-----"):
            request = x509.load_pem_x509_csr(data)
        else:
            request = x509.load_der_x509_csr(data)
        _check_parts(request)
        signed = request.is_signature_valid
    except _UNREADABLE:
        raise Malformed("this is not a certificate request") from None
    if not signed:
        raise Unauthenticated("the certificate request is not signed by the key that it names")
    return request


def _check_parts(found: x509.Certificate | x509.CertificateSigningRequest) -> None:
    """Read all that is read of it later: the library looks at names and keys only when asked."""
    key_sha256(found.public_key())
    for name in (found.subject, getattr(found, "issuer", found.subject)):
        for part in name:
            if not (isinstance(part.value, str) and part.value.isprintable()):
                raise ValueError("a name that can't be shown")


def key_sha256(public: object) -> str:
    """SHA-256 of a P-256 key's SubjectPublicKeyInfo. Raises Malformed for other keys."""
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1
    ):
        raise Malformed("certificates of this project are for P-256 keys")
    info = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(info).hexdigest()


def attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """One attribute of a name, or empty. Raises Malformed without a common name."""
    found = name.get_attributes_for_oid(oid)
    value = found[0].value if found else ""
    if oid == NameOID.COMMON_NAME and not value:
        raise Malformed("the certificate has no common name")
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def when(seconds: float) -> str:
    """A time as people write it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
