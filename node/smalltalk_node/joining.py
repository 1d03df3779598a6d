"""What is settled before a node works: its corpus, the run that it joined, its certificate.

Rules: the corpus is read through once and then only if a file has changed; the manifest must
be signed, by the key of the first join, and name this very corpus, if text is shared (a silo's
own is `silo_text`'s part); certificates are renewed in good time, and a coordinator that does
not answer is asked again later.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.messages import Join
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import (
    DataError,
    Malformed,
    SlowDown,
    Unauthenticated,
    UserError,
    WorldError,
)
from smalltalk_fed.wire.certificates import certificate_facts, make_request
from smalltalk_fed.wire.convert import Welcome
from smalltalk_fed.wire.signing import verify_manifest
from smalltalk_fed.wire.token import JoinToken
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import Newcomer
from smalltalk_node.identity import Identity, NodeFolder

log = logging.getLogger("smalltalk.node")

STAMP_FILE = "corpus-verified"
JOIN_FIRST_S = 0.5
JOIN_LAST_S = 30.0
RENEW_BEFORE_S = 10 * 86400.0
RENEW_EVERY_S = 3600.0


def enrol(folder: NodeFolder, token: JoinToken, name: str) -> Identity:
    """Let this folder's key be certified, once; the folder then belongs to the token's run.

    Raises:
        UserError: the folder belongs to a run already.
        PeerError: the coordinator refuses the token or the name.
        WorldError: no answer.
    """
    if folder.enrolled:
        identity = folder.identity()
        raise UserError(
            f"{folder.path} belongs to node {identity.node_id} of the run at "
            f"{identity.run_address} already; `smalltalk-node run` goes on with it, --dir names "
            "another folder."
        )
    request = make_request(folder.key(), name)
    with Newcomer(token.enrolment_address, token.authority) as newcomer:
        node_id, certificate = newcomer.enrol(token.secret, request, name)
    folder.keep_certificate(certificate, token.authority)
    identity = Identity(node_id, name, token.run_address, token.enrolment_address)
    folder.keep_identity(identity)  # last: a folder without it is not enrolled
    return identity


def text_path(folder: NodeFolder, path: Path | None) -> Path:
    """Where this node's corpus or text is: at `path`, or where that of the last run was.

    Raises:
        DataError: no path is known.
    """
    if path is None:
        known = folder.identity().corpus
        if not known:
            raise DataError(
                "this node does not know its corpus yet; name its folder with --corpus."
            )
        path = Path(known)
    return path.absolute()


def open_corpus(folder: NodeFolder, path: Path, stamp_file: str = STAMP_FILE) -> TokenCorpus:
    """Open the corpus at `path`; digests are checked once, which `stamp_file` remembers.

    Raises:
        DataError: it is not a whole corpus.
    """
    corpus = TokenCorpus.open(path)
    stamp, seen = folder.file(stamp_file), _appearance(corpus)
    if not stamp.exists() or stamp.read_text() != seen:
        log.info("reading the corpus through, once: %s", path)
        corpus = TokenCorpus.open(path, verify=True)
        stamp.write_text(seen)
    return corpus


def corpus_bytes(corpus: TokenCorpus) -> int:
    """Bytes of the token shards."""
    return sum(path.stat().st_size for path in _shards(corpus))


def join_patiently(
    connection: Connection, join: Join, wait: Callable[[WorldError | SlowDown, float], None]
) -> Welcome:
    """Present this process; while nobody has time, `wait(error, seconds)` and try again.

    Raises:
        PeerError: refused, with the reason.
    """
    longest_s = JOIN_FIRST_S
    while True:
        try:
            return connection.join(join)
        except (WorldError, SlowDown) as error:
            asked_s = error.wait_s if isinstance(error, SlowDown) else 0.0
            wait(error, asked_s + longest_s * (0.5 + 0.5 * random.random()))
            longest_s = min(2 * longest_s, JOIN_LAST_S)


def learn_addresses(folder: NodeFolder, connection: Connection, welcome: Welcome) -> Identity:
    """Keep where the coordinator can be reached now, out of the answer to `Join`.

    An address that it does not name is the operator's own, such as a tunnel: it stays alone.
    """
    here = connection.line.address
    runs, enrolments = welcome.run_addresses, welcome.enrolment_addresses
    if here not in runs or len(runs) != len(enrolments):
        return folder.identity()
    identity = folder.remember(
        run_address=here,
        enrolment_address=enrolments[runs.index(here)],
        run_addresses=runs,
        enrolment_addresses=enrolments,
    )
    connection.meet(identity)
    return identity


def signed_manifest(welcome: Welcome, identity: Identity) -> RunManifest:
    """The run's manifest out of the answer to `Join`.

    Raises:
        Unauthenticated: it is not signed, or by another coordinator than the first time.
        Malformed: it can't be read.
    """
    verify_manifest(welcome.coordinator_key, welcome.manifest, welcome.manifest_signature)
    if identity.coordinator_key not in ("", welcome.coordinator_key.hex()):
        raise Unauthenticated(
            "the coordinator has another signing key than when this node first joined; ask the "
            "organiser, and join anew with a new folder if the run was set up again"
        )
    return RunManifest.from_bytes(welcome.manifest)


def check_corpus(manifest: RunManifest, corpus: TokenCorpus) -> None:
    """Whether a corpus folder is the one that a run on shared text is about.

    Raises:
        Malformed: the manifest contradicts the corpus that it names.
        DataError: it is another one.
    """
    ours = corpus.manifest
    if manifest.corpus_digest != ours.digest:
        raise DataError(
            f"the corpus in {corpus.folder} ({ours.digest[:12]}) is not the run's "
            f"({manifest.corpus_digest[:12]}); name the right folder with --corpus."
        )
    if (manifest.tokenizer_sha256, manifest.vocabulary) != (ours.tokenizer_sha256, ours.vocabulary):
        raise DataError(
            f"the corpus in {corpus.folder} has another tokenizer than the run; prepare it with "
            "the run's tokenizer, or copy the run's corpus."
        )
    said = manifest.train_sequences, manifest.heldout_sequences, manifest.config.sequence.length
    if said != (len(corpus.train), len(corpus.heldout), ours.sequence_tokens):
        raise Malformed("the run's manifest contradicts the corpus that it names")


class Renewal:
    """Keeps the certificate from ending."""

    def __init__(self, folder: NodeFolder, connection: Connection) -> None:
        self._folder, self._connection = folder, connection
        self._again_at = float("-inf")

    def when_due(self, now: float) -> None:
        """Renew if the certificate ends within ten days; ask at most once an hour.

        Raises:
            PeerError: the coordinator won't renew it, with the reason.
        """
        if now < self._again_at:
            return
        self._again_at = now + RENEW_EVERY_S
        if certificate_facts(self._folder.certificate).not_after - now > RENEW_BEFORE_S:
            return
        try:
            self._connection.renew_certificate()
            log.info("the certificate was renewed")
        except (WorldError, SlowDown) as error:
            log.warning("the certificate could not be renewed yet: %s", error)


def _shards(corpus: TokenCorpus) -> list[Path]:
    entries = (*corpus.manifest.train.shards, *corpus.manifest.heldout.shards)
    return [corpus.folder / entry.file for entry in entries]


def _appearance(corpus: TokenCorpus) -> str:
    """Changes when a file of the corpus does."""
    files = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
             for path in _shards(corpus)]  # fmt: skip
    return "\n".join([str(corpus.folder.absolute()), corpus.digest, *files])
