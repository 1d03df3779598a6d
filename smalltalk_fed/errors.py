"""What can go wrong, and whose fault it is.

    SmalltalkError
    ├── UserError        the person's mistake: a file, a key, an argument      exit code 2
    │   ├── ConfigError  run.toml or --set
    │   └── DataError    text, corpus or mixture folder
    ├── PeerError        the other end broke the protocol or was refused       exit code 3
    │   ├── Unauthenticated  no valid certificate, token or signature
    │   ├── Forbidden        known, but not allowed to do this
    │   ├── Refused          well formed, but not acceptable now (says why)
    │   ├── Malformed        bytes or fields that can't be read (BadBlob: a blob's layout)
    │   ├── TooLarge         over a limit that the manifest implies
    │   └── SlowDown         too much at a time; the same again later is welcome
    ├── WorldError       disk full, port in use, nobody answers                exit code 4
    │   └── DamagedBlob  bytes on our own disk are not what was stored
    └── OurError         a broken invariant of our own                         exit code 1

Rules: a message is one sentence that says what was wrong, where, and what to do; `hint` is
the gRPC status name that a carrier answers with, so that no layer below the programs knows
gRPC. What others wrote stands in a message only as `shown`, or they could write into another's
terminal or log. This module raises nothing.
"""

from __future__ import annotations


def shown(text: str, limit: int = 80) -> str:
    """What somebody else wrote, as it may stand in a sentence: cut, and printable throughout."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:limit])


class SmalltalkError(Exception):
    """Base of all errors that the product raises on purpose."""

    exit_code: int = 1
    hint: str = "INTERNAL"


class UserError(SmalltalkError):
    """The person's mistake: shown as one sentence, without a traceback."""

    exit_code = 2
    hint = "INVALID_ARGUMENT"


class ConfigError(UserError):
    """A key or value of run.toml or --set is wrong."""


class DataError(UserError):
    """A text file, corpus or mixture folder can't be used."""


class PeerError(SmalltalkError):
    """The other end's fault: its message does not count, and it is told why."""

    exit_code = 3
    hint = "INVALID_ARGUMENT"


class Unauthenticated(PeerError):
    """No valid certificate, token or signature."""

    hint = "UNAUTHENTICATED"


class Forbidden(PeerError):
    """The peer is known, but may not do this."""

    hint = "PERMISSION_DENIED"


class Refused(PeerError):
    """Well formed, but not acceptable in the present state."""

    hint = "FAILED_PRECONDITION"


class Malformed(PeerError):
    """Bytes or fields that can't be read."""

    hint = "INVALID_ARGUMENT"


class BadBlob(Malformed, ValueError):
    """Bytes that don't follow their layout; also a ValueError, as in all of `mixture`."""


class TooLarge(PeerError):
    """Over a limit that the manifest implies; the message names the limit."""

    hint = "RESOURCE_EXHAUSTED"


class SlowDown(PeerError):
    """More at a time than one peer may ask for; the message names the limit.

    Who gets it waits `wait_s` seconds and says the same again: nothing else is wrong.
    """

    hint = "RESOURCE_EXHAUSTED"

    def __init__(self, what: str, wait_s: float = 1.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class WorldError(SmalltalkError):
    """Nobody's fault: disk full, port in use, no answer."""

    exit_code = 4
    hint = "UNAVAILABLE"


class DamagedBlob(WorldError):
    """A blob that the coordinator had is gone or changed; `digest` names it."""

    def __init__(self, digest: str, what: str) -> None:
        super().__init__(
            f"blob {digest[:12]} {what}; check the coordinator's disk, the run makes the blob "
            "anew where it can"
        )
        self.digest = digest
        self.what = what

    def __reduce__(self) -> tuple[type[DamagedBlob], tuple[str, str]]:
        return type(self), (self.digest, self.what)  # it comes out of the worker process


class OurError(SmalltalkError):
    """A broken invariant of our own; the process that sees it stops."""

    exit_code = 1
    hint = "INTERNAL"
