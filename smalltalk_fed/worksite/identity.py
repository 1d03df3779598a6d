"""The node folder: who this machine is to a run, and what it keeps between starts.

    node.json          addresses, node id, run, corpus; no secrets      lock
    key.pem            P-256, of the certificate       0600             incarnation
    signing.key        Ed25519, signs results          0600             metrics.jsonl
    certificate.pem    this node's                     ca.pem           node-status.json
    cache/             blobs by digest, bounded        work/            checkpoints
    experts/           finished experts, by expert

Rules: private to its owner (a folder that others can write to is refused); written whole or
not at all; one process at a time holds the lock, which the kernel drops when it dies; every
start has a larger incarnation, even if an older copy of the folder was put back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smalltalk_fed.core.field_types import wrong_field
from smalltalk_fed.errors import UserError
from smalltalk_fed.wire import certificates
from smalltalk_fed.wire.secret_files import private_folder, read_secret, write_secret
from smalltalk_fed.wire.signing import SigningKey

DEFAULT_FOLDER = Path("~/.smalltalk/node")
NODE_FILE = "node.json"
ADDRESS_LISTS = ("run_addresses", "enrolment_addresses")
INCARNATION_MAX = 1 << 62


@dataclass(frozen=True)
class Identity:
    """What node.json holds. All after the addresses is empty until the first `run`.

    `run_address` is where the coordinator answered last, at first the token's; the lists are what
    it said of itself then. An address that it does not name is the operator's own (a tunnel, a
    proxy): then nothing else is dialled, and the lists stay as they were.
    """

    node_id: str
    name: str
    run_address: str
    enrolment_address: str
    run_id: str = ""
    coordinator_key: str = ""  # Ed25519, hexadecimal; the first one seen, kept from then on
    corpus: str = ""
    public: str = ""  # in a private run: where its public text is
    run_addresses: tuple[str, ...] = ()
    enrolment_addresses: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[str, ...]:
        """Where to look for the coordinator, in this order."""
        return tuple(dict.fromkeys((self.run_address, *self.run_addresses)))

    @property
    def enrolments(self) -> tuple[str, ...]:
        """Where to look for its enrolment port, in this order."""
        return tuple(dict.fromkeys((self.enrolment_address, *self.enrolment_addresses)))


class NodeFolder:
    """One node's files. Make it with `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path | None) -> NodeFolder:
        """The folder at `path` (None: the default), made if it is not there.

        Raises:
            UserError: it is a file, or others can write to it.
        """
        return cls(private_folder((path or DEFAULT_FOLDER).expanduser().absolute()))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone.

        Raises:
            UserError: another process has it.
        """
        handle = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another smalltalk-node is using {self.path}; stop it, or give this one a "
                    "folder of its own with --dir."
                ) from None
            yield
        finally:
            os.close(handle)

    # ----------------------------------------------------------------------------- who it is

    @property
    def enrolled(self) -> bool:
        """Whether this folder belongs to a run."""
        return (self.path / NODE_FILE).exists()

    def identity(self) -> Identity:
        """What node.json says.

        Raises:
            UserError: the folder belongs to no run, or the file is damaged.
        """
        path = self.path / NODE_FILE
        if not self.enrolled:
            raise UserError(
                f"{self.path} belongs to no run yet; `smalltalk-node join TOKEN` with a token "
                "from the run's organiser."
            )
        try:
            found = json.loads(read_secret(path, "who this node is"))
            identity = Identity(**{**found, **_lists(found)})
            if odd := wrong_field(identity):
                raise ValueError(odd)
            return identity
        except (RecursionError, ValueError, TypeError):
            raise UserError(f"{path} is damaged; join again in a new folder.") from None

    def keep_identity(self, identity: Identity) -> None:
        """Write node.json."""
        text = json.dumps(asdict(identity), indent=1, sort_keys=True)
        write_secret(self.path / NODE_FILE, text.encode() + b"\n")

    def remember(self, **changes: str | tuple[str, ...]) -> Identity:
        """Change single fields of node.json."""
        before = self.identity()
        fields: dict[str, Any] = dict(changes)
        identity = replace(before, **fields)
        if identity != before:
            self.keep_identity(identity)
        return identity

    def next_incarnation(self, now: float) -> int:
        """A number larger than at any earlier start; durable before it is used.

        Seconds of the clock, or one more than the last where the clock went back: a folder
        that comes out of a backup does not repeat numbers.
        """
        path = self.path / "incarnation"
        try:
            last = int(path.read_bytes()[:20]) if path.exists() else 0
            if not 0 <= last < INCARNATION_MAX:
                raise ValueError
        except ValueError:
            raise UserError(f"{path} is damaged; join again in a new folder.") from None
        incarnation = max(last + 1, int(now))
        write_secret(path, str(incarnation).encode())
        return incarnation

    # ---------------------------------------------------------------------------------- keys

    def key(self) -> certificates.PrivateKey:
        """The certificate's key, made when first asked for."""
        path = self.path / "key.pem"
        if not path.exists():
            write_secret(path, certificates.key_to_pem(certificates.make_key()))
        return certificates.key_from_pem(read_secret(path, "this node's key"), str(path))

    def signing_key(self) -> SigningKey:
        """The key that results are signed with, made when first asked for."""
        path = self.path / "signing.key"
        if not path.exists():
            SigningKey.create().save(path)
        return SigningKey.load(path)

    @property
    def certificate(self) -> bytes:
        """This node's certificate, PEM. Raises UserError when there is none."""
        return read_secret(self.path / "certificate.pem", "this node's certificate")

    @property
    def authority(self) -> bytes:
        """The run's authority, PEM. Raises UserError when there is none."""
        return read_secret(self.path / "ca.pem", "the run's authority")

    def keep_certificate(self, certificate: bytes, authority: bytes | None = None) -> None:
        """Write this node's certificate, and the authority if it is new. PEM or DER."""
        if authority is not None:
            write_secret(self.path / "ca.pem", certificates.to_pem(authority))
        write_secret(self.path / "certificate.pem", certificates.to_pem(certificate))

    # --------------------------------------------------------------------------------- places

    def place(self, name: str) -> Path:
        """A folder of this name inside, made if it is not there."""
        return private_folder(self.path / name)

    def file(self, name: str) -> Path:
        """A file of this name inside."""
        return self.path / name


def _lists(found: dict[str, Any]) -> dict[str, object]:
    """The lists of addresses as tuples, which JSON does not have."""
    lists = {name: found[name] for name in ADDRESS_LISTS if name in found}
    return {name: tuple(value) if type(value) is list else value for name, value in lists.items()}
