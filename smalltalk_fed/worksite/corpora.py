"""The run's corpus on this machine: opened, looked through once, and held against the manifest.

Rules: the corpus is read through once and then only if a file has changed; the manifest must
be signed, by the key of the first join, and name this very corpus, if text is shared (a silo's
own is `silo_text`'s part).
"""

from __future__ import annotations

import logging
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, Malformed, Unauthenticated
from smalltalk_fed.wire.convert import Welcome
from smalltalk_fed.wire.signing import verify_manifest
from smalltalk_fed.worksite.identity import NodeFolder

log = logging.getLogger("smalltalk.node")

STAMP_FILE = "corpus-verified"


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


def signed_manifest(welcome: Welcome, known_key: str) -> RunManifest:
    """The run's manifest out of the answer to `Join`; `known_key`: the first join's, or empty.

    Raises:
        Unauthenticated: it is not signed, or by another coordinator than the first time.
        Malformed: it can't be read.
    """
    verify_manifest(welcome.coordinator_key, welcome.manifest, welcome.manifest_signature)
    if known_key not in ("", welcome.coordinator_key.hex()):
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


def _shards(corpus: TokenCorpus) -> list[Path]:
    entries = (*corpus.manifest.train.shards, *corpus.manifest.heldout.shards)
    return [corpus.folder / entry.file for entry in entries]


def _appearance(corpus: TokenCorpus) -> str:
    """Changes when a file of the corpus does."""
    files = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
             for path in _shards(corpus)]  # fmt: skip
    return "\n".join([str(corpus.folder.absolute()), corpus.digest, *files])
