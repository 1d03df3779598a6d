"""The run's authority: what it issues, what it refuses, what is written to disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smalltalk_fed.errors import Malformed, Unauthenticated, UserError
from smalltalk_fed.wire.certificates import (
    SERVER_NAME,
    CertificateAuthority,
    certificate_facts,
    key_from_pem,
    key_to_pem,
    make_key,
    make_request,
    public_key_sha256,
    to_der,
    to_pem,
    verify_issued_by,
)

NOW = 1_790_000_000.0
DAY_S = 86400.0


@pytest.fixture
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("run demo", NOW)


def test_node_certificate_says_who_and_how_long(authority: CertificateAuthority) -> None:
    key = make_key()
    request = make_request(key, "box")
    pem = authority.issue_node(request, "n-0123456789ab", NOW)
    facts = certificate_facts(pem)
    assert (facts.node_id, facts.role) == ("n-0123456789ab", "node")
    assert facts.key_sha256 == public_key_sha256(request) == public_key_sha256(pem)
    assert facts.not_after == NOW + 30 * DAY_S
    assert facts.not_before < NOW - 3600  # a clock an hour behind still gets in
    assert facts == certificate_facts(to_der(pem)) == certificate_facts(to_pem(to_der(pem)))
    verify_issued_by(authority.certificate_pem, pem)


def test_certificate_is_good_between_its_two_times_only(authority: CertificateAuthority) -> None:
    facts = certificate_facts(authority.issue_node(make_request(make_key(), "b"), "n-1", NOW))
    assert facts.problem(NOW) == ""
    assert "ended" in facts.problem(NOW + 30 * DAY_S + 1)
    assert "begins" in facts.problem(NOW - 2 * DAY_S)


def test_server_certificate_is_good_for_the_fixed_name_and_all_addresses(
    authority: CertificateAuthority,
) -> None:
    pem = authority.issue_server(make_key(), ["127.0.0.1", "vm.example.org"], NOW)
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == [SERVER_NAME, "vm.example.org"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert certificate_facts(pem).role == "server"


def test_operator_is_told_from_a_node(authority: CertificateAuthority) -> None:
    assert certificate_facts(authority.issue_operator(make_key(), NOW)).role == "operator"


def test_another_authority_is_found_out(authority: CertificateAuthority) -> None:
    other = CertificateAuthority.create("run demo", NOW)
    pem = other.issue_node(make_request(make_key(), "box"), "n-1", NOW)
    with pytest.raises(Unauthenticated):
        verify_issued_by(authority.certificate_pem, pem)


def test_authority_survives_the_disk_and_its_files_are_private(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    authority.save(tmp_path / "ca")
    for file in (tmp_path / "ca").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = CertificateAuthority.load(tmp_path / "ca")
    assert again.certificate_der == authority.certificate_der
    pem = again.issue_node(make_request(make_key(), "box"), "n-1", NOW)
    verify_issued_by(authority.certificate_pem, pem)


def test_key_that_others_can_read_is_refused(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    authority.save(tmp_path)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        CertificateAuthority.load(tmp_path)


def test_key_and_certificate_must_belong_together(tmp_path: Path) -> None:
    CertificateAuthority.create("a", NOW).save(tmp_path)
    key = (tmp_path / "ca.key").read_bytes()
    CertificateAuthority.create("b", NOW).save(tmp_path)
    (tmp_path / "ca.key").write_bytes(key)
    with pytest.raises(UserError, match="belong together"):
        CertificateAuthority.load(tmp_path)


def test_missing_authority_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        CertificateAuthority.load(tmp_path)


def test_request_that_its_key_did_not_sign_is_refused(authority: CertificateAuthority) -> None:
    request = bytearray(make_request(make_key(), "box"))
    other = make_request(make_key(), "box")
    # The public key is within the last 200 bytes before the signature: take the other's body.
    forged = bytes(other[: len(other) - 72]) + bytes(request[-72:])
    with pytest.raises((Unauthenticated, Malformed)):
        authority.issue_node(forged, "n-1", NOW)
    with pytest.raises((Unauthenticated, Malformed)):
        public_key_sha256(forged)


def test_only_p256_keys_are_certified(authority: CertificateAuthority) -> None:
    wrong = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "box")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    der = request.sign(wrong, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(Malformed, match="P-256"):
        authority.issue_node(der, "n-1", NOW)
    with pytest.raises(UserError, match="P-256"):
        key_from_pem(key_to_pem(wrong), "key.pem")


@pytest.mark.parametrize("data", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\n", b"0" * 20000])
def test_rubbish_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        certificate_facts(data)
    with pytest.raises(Malformed):
        public_key_sha256(data)


def test_certificates_of_kinds_that_we_never_make_are_malformed(
    authority: CertificateAuthority,
) -> None:
    der = authority.certificate_der
    version = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)  # X.509 of 2040
    curve = der.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030109"), 1)
    assert der not in (version, curve)
    for odd in (version, curve):
        for read in (
            certificate_facts,
            public_key_sha256,
            lambda data: verify_issued_by(authority.certificate_der, data),
            lambda data: verify_issued_by(data, authority.certificate_der),
        ):
            with pytest.raises(Malformed):
                read(odd)


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "\u202e"])
def test_a_certificates_names_can_be_shown(name: str) -> None:
    with pytest.raises(Malformed):
        certificate_facts(CertificateAuthority.create(name, NOW).certificate_der)
