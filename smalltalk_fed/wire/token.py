"""The join token: one line of text that a node needs to find and trust a run.

    stf1.<base64url of the body>
    body = length u16 | expiry u40 | secret 16 | run address | enrolment address | CA | check 4

The two addresses have a length byte before them, the certificate two; `length` counts the
whole body, so that a token that was cut off is told from one that was mistyped; `check` is
the head of the SHA-256 of all before it. The secret lets one machine in, once, until the
expiry; the coordinator stores only its digest. Nothing here decides anything.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass

from smalltalk_fed.errors import UserError, shown

PREFIX = "stf1."
SECRET_BYTES = 16
CHECK_BYTES = 4
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@dataclass(frozen=True)
class JoinToken:
    """Addresses are `host:port`; `authority` is the CA certificate in DER; `expires_at` Unix s."""

    run_address: str
    enrolment_address: str
    authority: bytes
    secret: bytes
    expires_at: int


def new_secret() -> bytes:
    """A fresh one-time secret."""
    return secrets.token_bytes(SECRET_BYTES)


def secret_sha256(secret: bytes) -> str:
    """What the coordinator stores of a secret; hexadecimal."""
    return hashlib.sha256(secret).hexdigest()


def check_address(text: str) -> str:
    """`text` if it is `host:port`. Raises UserError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536 or len(text) > 255:
        raise UserError(f"'{shown(text)}' is not an address; write it as host:port.")
    return text


def encode_token(token: JoinToken) -> str:
    """The token as one line. Raises UserError when an address is not `host:port`."""
    parts = [
        token.expires_at.to_bytes(5, "big"),
        token.secret,
        _short(check_address(token.run_address)),
        _short(check_address(token.enrolment_address)),
        len(token.authority).to_bytes(2, "big") + token.authority,
    ]
    inner = b"".join(parts)
    body = (len(inner) + 2 + CHECK_BYTES).to_bytes(2, "big") + inner
    body += hashlib.sha256(body).digest()[:CHECK_BYTES]
    return PREFIX + _base64(body)


def decode_token(text: str) -> JoinToken:
    """Read a token. White space around and inside it (a terminal's line breaks) is ignored.

    Raises:
        UserError: it is no token, was cut off or mistyped.
    """
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise UserError(
            f"this is not a join token: one begins with '{PREFIX}'; copy the whole line that "
            "`smalltalk-coordinator invite` printed."
        )
    encoded = text.removeprefix(PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9_-]*", encoded):
        odd = re.sub(r"[A-Za-z0-9_-]", "", encoded)[0]
        raise UserError(
            f"the join token has a character that none has ('{shown(odd)}'); copy it again."
        )
    # Whole bytes of what is there, even if the last one is cut.
    whole = encoded[: len(encoded) - 1 if len(encoded) % 4 == 1 else len(encoded)]
    try:
        body = base64.urlsafe_b64decode(whole + "=" * (-len(whole) % 4))
    except (binascii.Error, ValueError):
        body = b""
    expected = int.from_bytes(body[:2], "big")
    if len(body) < 2 or len(body) < expected:
        wanted = len(PREFIX) + -(-expected * 4 // 3)
        raise UserError(
            f"the join token was cut off ({len(text)} of {wanted} characters); copy the whole line."
        )
    check = hashlib.sha256(body[:-CHECK_BYTES]).digest()[:CHECK_BYTES]
    if len(body) != expected or body[-CHECK_BYTES:] != check or _base64(body) != encoded:
        raise UserError("the join token is damaged (its checksum is wrong); copy it again.")
    return _parse(body[2:-CHECK_BYTES])


def _parse(inner: bytes) -> JoinToken:
    try:
        expires_at = int.from_bytes(inner[:5], "big")
        secret, rest = inner[5 : 5 + SECRET_BYTES], inner[5 + SECRET_BYTES :]
        run, rest = _take(rest, 1)
        enrolment, rest = _take(rest, 1)
        authority, rest = _take(rest, 2)
        if rest or len(secret) != SECRET_BYTES:
            raise ValueError
        return JoinToken(
            check_address(run.decode("ascii")),
            check_address(enrolment.decode("ascii")),
            authority,
            secret,
            expires_at,
        )
    except (ValueError, UserError):
        raise UserError(
            "the join token was made by a version of smalltalk-fed that this one can't read; "
            "install the coordinator's version."
        ) from None


def _base64(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _short(text: str) -> bytes:
    data = text.encode("ascii")
    return bytes([len(data)]) + data


def _take(data: bytes, width: int) -> tuple[bytes, bytes]:
    end = width + int.from_bytes(data[:width], "big")
    if len(data) < end or len(data) < width:
        raise ValueError
    return data[width:end], data[end:]
