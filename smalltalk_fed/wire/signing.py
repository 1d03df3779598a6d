"""Ed25519 signatures: a node over its results, the coordinator over manifest and assignments.

Rules: what is signed is canonical JSON under a prefix that names its kind and version, so
that a signature over one thing never fits another. A result's statement names run, unit,
node, incarnation, the digests of what went in and came out, and the figures: whatever
carrier brought it, it can be checked years later from the journal alone.
A unit is signed as it is handed out to one process of one node: nobody else can give it work,
or the same work to another.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from smalltalk_fed.config.manifest import canonical_json
from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.errors import Unauthenticated, UserError
from smalltalk_fed.wire.secret_files import read_secret, write_secret

_RESULT = b"smalltalk-fed result 1\0"
_UNIT = b"smalltalk-fed unit 1\0"
_MANIFEST = b"smalltalk-fed manifest 1\0"
_PRESENCE = b"smalltalk-fed presence 1\0"


class SigningKey:
    """A private Ed25519 key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls) -> SigningKey:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read what `save` wrote. Raises UserError when it is missing, open or no key."""
        data = read_secret(path, "the signing key")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise UserError(f"{path} holds no signing key.") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UserError(f"{path} holds no Ed25519 key.")
        return cls(key)

    def secret_for(self, purpose: str) -> bytes:
        """32 bytes that only the holder of the key knows; others for another purpose."""
        raw = self._key.private_bytes(
            serialization.Encoding.Raw,
            serialization.PrivateFormat.Raw,
            serialization.NoEncryption(),
        )
        return hmac.digest(raw, b"smalltalk-fed secret 1\0" + purpose.encode(), "sha256")

    def save(self, path: Path) -> None:
        """Write the key, mode 0600."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_secret(path, pem)

    @property
    def public_bytes(self) -> bytes:
        """The raw public key, 32 bytes; what `Join` carries."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        """64 bytes. Use the functions below, which prefix what they sign."""
        return self._key.sign(statement)


def sign_result(
    key: SigningKey, run_id: str, node_id: str, incarnation: int, unit: Unit, result: Result
) -> bytes:
    """A node's signature over a finished unit; `result.signature` is ignored."""
    return key.sign(_result_statement(run_id, node_id, incarnation, unit, result))


def verify_result(
    public_key: bytes, run_id: str, node_id: str, incarnation: int, unit: Unit, result: Result
) -> None:
    """Check `result.signature`; `unit` is the unit with the inputs that it was handed out with.

    Raises:
        Unauthenticated: it is not this key's signature over this result.
    """
    statement = _result_statement(run_id, node_id, incarnation, unit, result)
    _verify(public_key, result.signature, statement, f"the result of {result.unit_id}")


def sign_unit(key: SigningKey, run_id: str, node_id: str, incarnation: int, unit: Unit) -> bytes:
    """The coordinator's signature over a unit as it is handed out to one process of a node."""
    return key.sign(_UNIT + canonical_json(_handed_out(run_id, node_id, incarnation, unit)))


def verify_unit(
    public_key: bytes, run_id: str, node_id: str, incarnation: int, unit: Unit, signature: bytes
) -> None:
    """Raises Unauthenticated when it is not this key's signature over this very assignment."""
    statement = _UNIT + canonical_json(_handed_out(run_id, node_id, incarnation, unit))
    _verify(public_key, signature, statement, f"the assignment of {unit.unit_id}")


def sign_manifest(key: SigningKey, manifest: bytes) -> bytes:
    """The coordinator's signature over `RunManifest.to_bytes()`."""
    return key.sign(_MANIFEST + manifest)


def verify_manifest(public_key: bytes, manifest: bytes, signature: bytes) -> None:
    """Raises Unauthenticated when it is not this key's signature over this manifest."""
    _verify(public_key, signature, _MANIFEST + manifest, "the run's manifest")


def sign_presence(key: SigningKey, challenge: bytes, join: bytes) -> bytes:
    """A node's signature over its `Join` as it travels, for who sent `challenge`.

    For carriers whose messages don't prove who sends them, as mutual TLS does.
    """
    return key.sign(_PRESENCE + _framed(challenge) + join)


def verify_presence(public_key: bytes, challenge: bytes, join: bytes, signature: bytes) -> None:
    """Raises Unauthenticated: who sent this `Join` does not have the key, or answers another."""
    _verify(public_key, signature, _PRESENCE + _framed(challenge) + join, "this node's presence")


def _framed(data: bytes) -> bytes:
    """So that where one part ends and the next begins is signed, too."""
    return len(data).to_bytes(4, "big") + data


def _result_statement(
    run_id: str, node_id: str, incarnation: int, unit: Unit, result: Result
) -> bytes:
    statement = {
        **_handed_out(run_id, node_id, incarnation, unit),
        "unit": result.unit_id,
        "outputs": [_blob(ref) for ref in result.outputs],
        # As they travel: an integer that a node put in arrives as a float.
        "figures": {name: float(value) for name, value in result.figures.items()},
    }
    return _RESULT + canonical_json(statement)


def _handed_out(run_id: str, node_id: str, incarnation: int, unit: Unit) -> dict[str, object]:
    return {
        "run": run_id,
        "node": node_id,
        "incarnation": incarnation,
        "unit": unit.unit_id,
        "inputs": [_blob(ref) for ref in unit.inputs],
        "start_step": unit.start_step,
        "weights": [float(weight) for weight in unit.weights],
        "sample": unit.sample,
        **({"prices": [float(price) for price in unit.prices]} if unit.prices else {}),
        **({"redo": True} if unit.redo else {}),
        **({"withdrawn": list(unit.withdrawn)} if unit.withdrawn else {}),
    }


def _blob(ref: BlobRef) -> list[str | int]:
    return [ref.name, ref.digest, ref.size]


def _verify(public_key: bytes, signature: bytes, statement: bytes, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
    except (InvalidSignature, ValueError):
        raise Unauthenticated(f"{what} is not signed by the key that it should be") from None
