"""How a node's process comes into its run: what the run is, its text made ready, presented.

Rules: nothing is said of this node's text before it is known whether the run is private, which
the signed manifest says; of a silo's text only counts and a keyed digest are told. The corpus of
a shared run must be the one that the manifest names. Whoever joins again, since the coordinator
was restarted, says the same as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS, RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import TOKENIZER_BYTES_MAX
from smalltalk_fed.core.silo_book import has_public_text, is_private
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, OurError, PeerError, Refused, SlowDown, WorldError
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.convert import Welcome
from smalltalk_fed.wire.values import digest_to_proto
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.corpora import (
    check_corpus,
    open_corpus,
    signed_manifest,
    text_path,
)
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.presence import open_public, what_to_say
from smalltalk_fed.worksite.privacy_limit import refuse_cost
from smalltalk_fed.worksite.silo_text import is_corpus, open_silo
from smalltalk_node.connection import Connection
from smalltalk_node.joining import join_patiently, learn_addresses
from smalltalk_node.options import Options
from smalltalk_node.transfer import get_blob

MANIFEST_FILE = "manifest.json"

Wait = Callable[[WorldError | SlowDown, float], None]


class Arrival:
    """One process's way in: `learn` what the run is, `present` itself, `join` again."""

    def __init__(self, folder: NodeFolder, options: Options, incarnation: int) -> None:
        """Raises DataError: there is no text at the path, or it is no whole corpus."""
        self._folder, self._options, self._incarnation = folder, options, incarnation
        self._path = text_path(folder, options.corpus)
        self._corpus: TokenCorpus | None = None
        if is_corpus(self._path) or not self._path.exists():
            self._corpus = open_corpus(folder, self._path)
        self._public: TokenCorpus | None = None
        self._welcome: Welcome | None = None
        self._presented = False
        self._manifest = _shared_manifest(folder)  # None: look first what the run is
        self._machine = machine.probe(folder.path, options.device, options.threads)

    @property
    def corpus(self) -> TokenCorpus:
        """The run's text on this machine. Raises DataError before it is known."""
        if self._corpus is None:
            raise DataError(f"the text in {self._path} is not made ready yet.")
        return self._corpus

    @property
    def public(self) -> TokenCorpus | None:
        """The public text of a private run that has some."""
        return self._public

    def learn(self, connection: Connection, wait: Wait, tokens_per_s: float) -> RunManifest:
        """What the run is; nothing of it is kept before `present`.

        A run on shared text that was joined before is presented to by the same question.

        Raises:
            PeerError: refused, with the reason; or the manifest can't be trusted.
            DataError: the corpus at hand is not the run's.
        """
        identity = self._folder.identity()
        self._presented = self._manifest is not None
        welcome = self._ask(connection, wait, tokens_per_s)
        manifest = signed_manifest(welcome, identity.coordinator_key)
        if not is_private(manifest):
            if self._corpus is None:
                self._corpus = open_corpus(self._folder, self._path)
            check_corpus(manifest, self._corpus)
        self._manifest, self._welcome = manifest, welcome
        return manifest

    def present(self, connection: Connection, wait: Wait, tokens_per_s: float) -> None:
        """Keep which run this is, make a silo's text ready, and say that this process is here.

        Raises:
            PeerError: refused, with the reason.
            DataError: the text can't be used.
            CostsTooMuch: it would tell more of the text than its owner allows.
        """
        manifest, welcome = self._manifest, self._welcome
        if manifest is None or welcome is None:
            raise OurError("a node takes part before it knows in what; this is a bug")
        connection.trust(welcome.coordinator_key, manifest.run_id)
        self._folder.remember(
            run_id=manifest.run_id,
            coordinator_key=welcome.coordinator_key.hex(),
            corpus=str(self._path),
        )
        self._folder.file(MANIFEST_FILE).write_bytes(welcome.manifest)
        if self._presented:
            return
        if is_private(manifest):
            if has_public_text(manifest):
                self._public = self._open_public(manifest)
            fetch = partial(fetch_tokenizer, connection)
            self._corpus = open_silo(self._folder, self._path, manifest, fetch)
            refuse_cost(manifest, self._options.limits, self._corpus)
        self.join(connection, wait, tokens_per_s)

    def join(self, connection: Connection, wait: Wait, tokens_per_s: float) -> None:
        """Present this process; waits for a coordinator that is not there.

        Raises:
            PeerError: refused, with the reason.
        """
        self._ask(connection, wait, tokens_per_s)

    def _open_public(self, manifest: RunManifest) -> TokenCorpus:
        known = self._folder.identity().public
        path = self._options.public or (Path(known) if known else None)
        public = open_public(self._folder, manifest, path)
        self._folder.remember(public=str(public.folder))
        return public

    def _ask(self, connection: Connection, wait: Wait, tokens_per_s: float) -> Welcome:
        join = msg.Join(
            connection.node_id,
            self._incarnation,
            PROTOCOL_VERSIONS[-1],
            self._folder.signing_key().public_bytes,
            self._said(tokens_per_s),
            self._options.seat,
            self._options.limits.weights,
        )
        welcome = join_patiently(connection, join, wait)
        learn_addresses(self._folder, connection, welcome)
        return welcome

    def _said(self, tokens_per_s: float) -> msg.Capabilities:
        """What is told of this machine and its text."""
        key = self._folder.signing_key()
        return what_to_say(self._machine, self._manifest, self._corpus, key, tokens_per_s)


def _shared_manifest(folder: NodeFolder) -> RunManifest | None:
    """The manifest of an earlier start, if its run is on shared text."""
    path = folder.file(MANIFEST_FILE)
    try:
        manifest = RunManifest.from_bytes(path.read_bytes())
    except (OSError, PeerError):
        return None
    return None if is_private(manifest) else manifest


def fetch_tokenizer(connection: Connection, digest: str, path: Path) -> Path:
    """Bring the run's tokenizer.json to `path`.

    Raises:
        PeerError, WorldError: it did not come.
    """
    asked = pb.BlobStateRequest(digest=digest_to_proto(digest), name="tokenizer")
    state = connection.call(connection.stub.BlobState, asked, "blob_state")
    if not state.complete:
        raise Refused("the coordinator does not have the run's tokenizer; tell the organiser")
    if state.received > TOKENIZER_BYTES_MAX:
        raise Refused(
            f"the run's tokenizer has {state.received} bytes; at most {TOKENIZER_BYTES_MAX} are "
            "taken"
        )
    return get_blob(connection, BlobRef("tokenizer", digest, int(state.received)), path)
