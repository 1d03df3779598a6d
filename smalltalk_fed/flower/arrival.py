"""How a Flower node comes into a run: which run it is, its text made ready, presented.

Rules: the question brings the signed manifest, so that nothing is said of this node's text
before it is known whether the run is private, and whether its owner's limits allow the run. The
corpus of a shared run must be the one that the manifest names. A silo's text is turned into
tokens here, once; the tokenizer that it takes comes with the question if it is not here. What is
wrong with a text stays in this node's log: the words of an error may be the text's own, or its
digest, by which it could be guessed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from google.protobuf.message import DecodeError

from smalltalk_fed.config.manifest import PROTOCOL_VERSIONS, RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import node_id_of
from smalltalk_fed.core.silo_book import has_public_text, is_private
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, Malformed, Refused, UserError
from smalltalk_fed.flower.known_runs import KnownRuns
from smalltalk_fed.flower.settings import NodeSettings
from smalltalk_fed.flower.turns import Introduction, Question
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.signing import SigningKey, sign_presence
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.corpora import check_corpus, open_corpus
from smalltalk_fed.worksite.hours import Hours
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.limits import Limits, refuse
from smalltalk_fed.worksite.presence import open_public, what_to_say
from smalltalk_fed.worksite.privacy_limit import TOLD, CostsTooMuch, refuse_cost
from smalltalk_fed.worksite.silo_text import open_silo

log = logging.getLogger("smalltalk.node")

UNUSABLE_TEXT = "this node's text can't be used; the reason is in its own log"


class _Missing(Exception):
    """The blob of this digest did not come with the question."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest


def key_of_node(key: SigningKey) -> str:
    """What a node enrols with: the digest of the key that it signs with."""
    return sha256(key.public_bytes).hexdigest()


def introduce(settings: NodeSettings, question: Question, now: float) -> Introduction:
    """Who this node is; it is a new process to the coordinator from here on.

    Raises:
        PeerError: the question is not a run's, its text can't be used, or not at this hour.
        UserError: folder or text can't be used, or the run exceeds the owner's limits.
        WorldError: the disk refuses.
    """
    folder = NodeFolder.open(settings.folder)
    with folder.locked():
        known = KnownRuns(folder)
        manifest = known.manifest(read_welcome(question.welcome))
        limits = limits_of(folder, settings)
        check_hours(limits)
        refuse(manifest, limits, on_gpu=settings.on_gpu)
        try:
            corpus = _take_part(folder, settings, manifest, known, question)
            _refuse_cost(manifest, limits, corpus)
        except _Missing as missing:
            return Introduction(name=settings.name, missing=(missing.digest,))
        key, seen = folder.signing_key(), machine.probe(folder.path, settings.device)
        join = msg.Join(
            node_id_of(key_of_node(key)),
            folder.next_incarnation(now),
            PROTOCOL_VERSIONS[-1],
            key.public_bytes,
            what_to_say(seen, manifest, corpus, key, 0.0),
            settings.seat if is_private(manifest) else -1,
            limits.weights,
        )
        data = convert.join_to_proto(join).SerializeToString()
        return Introduction(data, sign_presence(key, question.challenge, data), settings.name)


def texts_of(
    folder: NodeFolder, settings: NodeSettings, manifest: RunManifest, known: KnownRuns
) -> tuple[TokenCorpus, TokenCorpus | None]:
    """What this node takes part with: its corpus, and the public one of a private run that has one.

    Raises:
        Refused: it is not what the run is about, or not that of the introduction.
        DataError: the public text is missing, or another one.
    """
    if is_private(manifest):
        public = _public(folder, settings, manifest)
        with _kept_here():
            return known.text(manifest), public
    with _kept_here():
        corpus = open_corpus(folder, settings.corpus)
        check_corpus(manifest, corpus)
        return corpus, None


def limits_of(folder: NodeFolder, settings: NodeSettings) -> Limits:
    """What the owner allows: limits.toml, and whom the node config lets have the weights.

    Raises:
        UserError: a key or value is wrong.
    """
    return Limits.load(folder.path).changed(weights=settings.weights or None)


def check_hours(limits: Limits) -> None:
    """Raises Refused: the owner lets this node work at other hours of the day."""
    hours, now = Hours.parse(limits.hours), datetime.now()
    if not hours.open(now):
        raise Refused(f"outside the hours that its owner set, until {hours.next_start(now)}")


def read_welcome(data: bytes) -> convert.Welcome:
    """The JoinReply that a message carries. Raises Malformed or TooLarge."""
    try:
        return convert.welcome_from_proto(pb.JoinReply.FromString(data))
    except DecodeError as error:
        raise Malformed(f"a run that can't be read ({error})") from None


def _take_part(
    folder: NodeFolder,
    settings: NodeSettings,
    manifest: RunManifest,
    known: KnownRuns,
    question: Question,
) -> TokenCorpus:
    """The text that this node takes part with, made ready. Raises _Missing: the tokenizer."""
    if not is_private(manifest):
        return texts_of(folder, settings, manifest, known)[0]

    def bring(digest: str, to: Path) -> Path:
        data = question.blobs.get(digest)
        if data is None:
            raise _Missing(digest)
        to.write_bytes(data)  # checked whenever it is used: half of one is fetched again
        return to

    _public(folder, settings, manifest)
    if settings.corpus == settings.public:
        raise UserError(
            "this node brings no text of its own; name it with --node-config 'corpus=\"/path\"', "
            "in a simulation with --run-config 'node-text=\"/path/{}.jsonl\"'."
        )
    if not settings.corpus.exists():
        raise UserError(f"there is no text at {settings.corpus}; name it in the node config.")
    with _kept_here():
        corpus = open_silo(folder, settings.corpus, manifest, bring)
    known.take_part_with(manifest, corpus)
    return corpus


def _refuse_cost(manifest: RunManifest, limits: Limits, corpus: TokenCorpus) -> None:
    """Raises Refused: more of the text would be told than its owner allows; how much is kept."""
    try:
        refuse_cost(manifest, limits, corpus)
    except CostsTooMuch as error:
        log.error("%s", error)
        raise Refused(TOLD) from None


@contextlib.contextmanager
def _kept_here() -> Iterator[None]:
    """What is wrong with this node's text is said in its log, and nowhere else."""
    try:
        yield
    except UserError as error:
        log.error("%s", error)
        raise Refused(UNUSABLE_TEXT) from None


def _public(
    folder: NodeFolder, settings: NodeSettings, manifest: RunManifest
) -> TokenCorpus | None:
    if not has_public_text(manifest):
        return None
    if settings.public is None:
        raise DataError("the run has public text; name its folder in the node config: 'public'.")
    return open_public(folder, manifest, settings.public)
