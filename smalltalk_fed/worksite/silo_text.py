"""A silo's own text, made ready on this machine: tokens by the run's tokenizer, a held-out part.

Rules: the text itself is only read, and nothing of it or of how often its words occur is told to
anybody; the tokenizer comes from the coordinator and must be the one that the signed manifest
names. The tokens lie in the node's folder and are made again when a file of the text or what
the run asks has changed. Documents are held out whole, chosen by a hash of their own text. A
corpus folder that was prepared with the run's tokenizer is taken as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import MANIFEST_FILE, TokenCorpus
from smalltalk_fed.errors import DataError
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.identity import NodeFolder

log = logging.getLogger("smalltalk.node")

HELDOUT_FRACTION = 0.1
TOKENIZER = "tokenizer.json"

FetchTokenizer = Callable[[str, Path], Path]  # digest, where to put it; the carrier's part


def is_corpus(path: Path) -> bool:
    """Whether a path is a corpus folder and not text."""
    return (path / MANIFEST_FILE).exists()


def open_silo(
    folder: NodeFolder, path: Path, manifest: RunManifest, fetch: FetchTokenizer
) -> TokenCorpus:
    """The tokens of the text at `path`, as this run reads it; made if they are not there yet.

    `fetch` brings the run's tokenizer, if it is not here.

    Raises:
        DataError: the text can't be read, is too little, or was prepared for another run.
        PeerError, WorldError: the tokenizer did not come.
    """
    if is_corpus(path):
        corpus = TokenCorpus.open(path)
        _check_prepared(manifest, corpus)
        return corpus
    place = folder.place("text")
    wanted = _appearance(path, manifest)
    made = place / wanted
    if not is_corpus(made):
        shutil.rmtree(place, ignore_errors=True)  # of another text, or another run
        folder.place("text")
        _make(path, made, manifest, _tokenizer(folder, manifest, fetch))
    corpus = TokenCorpus.open(made)
    _check_prepared(manifest, corpus)
    return corpus


def text_digest(key: SigningKey, corpus: TokenCorpus) -> str:
    """What the coordinator is told of the text: the same for the same, and nothing to guess by."""
    return hmac.digest(key.secret_for("text"), corpus.digest.encode(), "sha256").hex()


def _make(path: Path, made: Path, manifest: RunManifest, tokenizer: Path) -> None:
    from smalltalk_fed.data.prepare import PrepareOptions, prepare

    log.info("turning the text into tokens, once: %s", path)
    prepare(
        PrepareOptions(
            inputs=(path,),
            out=made,
            sequence_tokens=manifest.config.sequence.length,
            tokenizer=tokenizer,
            heldout_fraction=HELDOUT_FRACTION,
        )
    )


def _tokenizer(folder: NodeFolder, manifest: RunManifest, fetch: FetchTokenizer) -> Path:
    """The run's tokenizer.json, fetched if it is not here."""
    path = folder.place("tokenizers") / manifest.tokenizer_sha256 / TOKENIZER
    if path.exists() and _sha256(path) == manifest.tokenizer_sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    return fetch(manifest.tokenizer_sha256, path)


def _check_prepared(manifest: RunManifest, corpus: TokenCorpus) -> None:
    ours, config = corpus.manifest, manifest.config
    if (ours.tokenizer_sha256, ours.vocabulary) != (manifest.tokenizer_sha256, manifest.vocabulary):
        raise DataError(
            f"the corpus in {corpus.folder} has another tokenizer than the run; name the text "
            "itself with --corpus, or prepare it with the run's tokenizer."
        )
    if ours.sequence_tokens != config.sequence.length:
        raise DataError(
            f"the corpus in {corpus.folder} has sequences of {ours.sequence_tokens} tokens, the "
            f"run has {config.sequence.length}; prepare it again with that length."
        )


def _appearance(path: Path, manifest: RunManifest) -> str:
    """Changes when a file of the text does, or what the run makes of it."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(file), file.stat()) for file in files]
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    run = (manifest.tokenizer_sha256, manifest.config.sequence.length, HELDOUT_FRACTION)
    return hashlib.sha256(json.dumps([seen, run]).encode()).hexdigest()[:24]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
