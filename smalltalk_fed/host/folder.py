"""The run folder: everything that a coordinator keeps, and the lock on it.

    run.toml          the configuration as given        manifest.json   what is signed
    corpus.json       the corpus' manifest, if shared   tokenizer/      goes into the mixture
    authority/        the run's CA, 0600                signing.key     the coordinator's, 0600
    operator/         the operator's certificate        addresses.json  where it is dialled
    journal.sqlite    the events                        blobs/          content-addressed bytes
    mixture/          the result, once the run is finished

Rules: `create` makes a whole folder or none; a folder that others can write to is refused;
one process at a time holds the lock (the kernel drops it if the process dies).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from smalltalk_fed.config.inside import only_plain, plain
from smalltalk_fed.config.manifest import (
    CorpusManifest,
    RunManifest,
    make_manifest,
    make_private_manifest,
    sha256,
)
from smalltalk_fed.config.problems import first_problem
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.errors import DataError, PeerError, UserError, WorldError, shown
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.database import create_database
from smalltalk_fed.host.tokenizer_files import TOKENIZER_FILE, take_tokenizer
from smalltalk_fed.wire.certificates import CertificateAuthority, key_to_pem, make_key
from smalltalk_fed.wire.secret_files import OTHERS_WRITE, private_folder, write_secret
from smalltalk_fed.wire.signing import SigningKey

ADDRESSES_FILE = "addresses.json"


@dataclass(frozen=True)
class RunFolder:
    """An existing run folder."""

    path: Path
    manifest: RunManifest
    addresses: Addresses

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        config_text: str,
        text: Path,
        addresses: Addresses,
        now: float,
    ) -> RunFolder:
        """Make the folder, its authority, keys and manifest.

        `text`: a corpus folder, or for a private run without public text a tokenizer.

        Raises:
            UserError: the folder is not empty, or text and configuration don't fit.
            WorldError: the disk refuses; nothing is left behind.
        """
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} is not empty; name a new folder for the run.")
        run_id = f"{config.run.name}-{secrets.token_hex(4)}"
        making = path.with_name(f".{path.name}.making")
        try:
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True, mode=0o700)
            (making / "run.toml").write_text(config_text, encoding="utf-8")
            corpus = (text / "corpus.json").exists() or config.run.regime != "private"
            take = _take_corpus if corpus else _take_tokenizer
            manifest = take(making, config, text, run_id, int(now))
            (making / "manifest.json").write_bytes(manifest.to_bytes())
            addresses.save(making / ADDRESSES_FILE)
            authority = CertificateAuthority.create(f"smalltalk {run_id}", now)
            authority.save(making / "authority")
            key = make_key()
            private_folder(making / "operator")
            write_secret(making / "operator" / "key.pem", key_to_pem(key))
            write_secret(making / "operator" / "cert.pem", authority.issue_operator(key, now))
            SigningKey.create().save(making / "signing.key")
            create_database(making / "journal.sqlite")
            if path.exists():
                path.rmdir()
            making.rename(path)
        except OSError as error:
            raise WorldError(f"{path} can't be made ({error.strerror}).") from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return cls(path, manifest, addresses)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open what `create` made.

        Raises:
            UserError: not a run folder, or others can write to it.
        """
        try:
            manifest = RunManifest.from_bytes((path / "manifest.json").read_bytes())
            addresses = Addresses.load(path / ADDRESSES_FILE)
        except FileNotFoundError:
            raise UserError(
                f"{path} is not a run folder; make one with `smalltalk-coordinator init {path}`."
            ) from None
        except (OSError, PeerError, RecursionError, TypeError, UserError, ValueError) as error:
            raise UserError(f"{path} can't be read ({shown(str(error), 300)}).") from None
        if path.stat().st_mode & OTHERS_WRITE:
            raise UserError(f"others can write to {path}; run `chmod go-w {path}` first.")
        return cls(path, manifest, addresses)

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.sqlite"

    @property
    def blobs(self) -> Path:
        """The blob store's folder."""
        return self.path / "blobs"

    def tokenizer(self) -> bytes:
        """tokenizer.json: what the nodes of a private run read their text with.

        Raises:
            WorldError: it is gone, or is not that of the manifest.
        """
        file = self.path / "tokenizer" / TOKENIZER_FILE
        try:
            data = file.read_bytes()
        except OSError as error:
            raise WorldError(f"{file} can't be read ({error.strerror}).") from None
        if sha256(data) != self.manifest.tokenizer_sha256:
            raise WorldError(f"{file} is not the run's tokenizer any more; put it back.")
        return data

    @property
    def mixture(self) -> Path:
        """Where the mixture lies once the run is finished."""
        return self.path / "mixture"

    def authority(self) -> CertificateAuthority:
        """The run's certificate authority."""
        return CertificateAuthority.load(self.path / "authority")

    def signing_key(self) -> SigningKey:
        """The coordinator's signing key."""
        return SigningKey.load(self.path / "signing.key")

    def audit_secret(self) -> bytes:
        """What audits are drawn with: made from the signing key, so that old folders have it."""
        return self.signing_key().secret_for("audits")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone.

        Raises:
            UserError: another coordinator has it.
        """
        descriptor = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another coordinator is using {self.path}; stop it, or talk to it with "
                    f"`smalltalk-coordinator status {self.path}`."
                ) from None
            yield
        finally:
            os.close(descriptor)


def _take_corpus(
    making: Path, config: RunConfig, corpus_folder: Path, run_id: str, now: int
) -> RunManifest:
    """What a run keeps of its corpus, shared or public: its manifest and its tokenizer."""
    corpus = read_corpus_manifest(corpus_folder)
    if config.run.regime == "private":
        words = (corpus.tokenizer_sha256, corpus.vocabulary)
        manifest = make_private_manifest(config, *words, run_id, now, corpus)
    else:
        manifest = make_manifest(config, corpus, run_id, now)
    tokenizer = plain(corpus_folder, "tokenizer")
    only_plain(tokenizer)
    if not (tokenizer / TOKENIZER_FILE).exists():
        raise DataError(f"{tokenizer} has no {TOKENIZER_FILE}; prepare the corpus again.")
    if sha256((tokenizer / TOKENIZER_FILE).read_bytes()) != manifest.tokenizer_sha256:
        raise DataError(f"{tokenizer} is not the tokenizer that the corpus was made with.")
    (making / "corpus.json").write_bytes((corpus_folder / "corpus.json").read_bytes())
    shutil.copytree(tokenizer, making / "tokenizer")
    return manifest


def _take_tokenizer(
    making: Path, config: RunConfig, tokenizer: Path, run_id: str, now: int
) -> RunManifest:
    """What a private run has beside its configuration: the tokenizer that its nodes are sent."""
    digest, vocabulary = take_tokenizer(tokenizer, making / "tokenizer")
    return make_private_manifest(config, digest, vocabulary, run_id, now)


def read_corpus_manifest(folder: Path) -> CorpusManifest:
    """corpus.json of a corpus folder.

    Raises:
        DataError: missing or unreadable.
    """
    path = plain(folder, "corpus.json")
    try:
        return CorpusManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not a corpus; make one with `smalltalk prepare TEXT --out {folder}`."
        ) from None
    except ValidationError as error:
        where, what = first_problem(error)
        raise DataError(
            f"{path} can't be read ({where}: {what}); prepare the corpus again."
        ) from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error}); prepare the corpus again.") from None
