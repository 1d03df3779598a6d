"""What a node says of itself when it joins, and a private run's public text; for every carrier.

Rules: nothing is said of this node's text before it is known whether the run is private; of a
silo's text only counts and a keyed digest are told.
"""

from __future__ import annotations

from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.messages import Capabilities
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError
from smalltalk_fed.wire.signing import SigningKey
from smalltalk_fed.worksite.corpora import check_corpus, corpus_bytes, open_corpus
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.machine import Machine, capabilities
from smalltalk_fed.worksite.silo_text import text_digest

PUBLIC_STAMP = "public-verified"


def what_to_say(
    machine: Machine,
    manifest: RunManifest | None,
    corpus: TokenCorpus | None,
    key: SigningKey,
    tokens_per_s: float,
) -> Capabilities:
    """What `Join` tells of this machine and its text; `manifest` None: the run is not known yet."""
    if manifest is None or corpus is None:
        return capabilities(machine, "", 0, tokens_per_s)
    if not is_private(manifest):
        return capabilities(machine, corpus.digest, corpus_bytes(corpus), tokens_per_s)
    sequences = (len(corpus.train), len(corpus.heldout))
    return capabilities(machine, text_digest(key, corpus), 0, tokens_per_s, sequences)


def open_public(folder: NodeFolder, manifest: RunManifest, path: Path | None) -> TokenCorpus:
    """The public corpus of a private run that has one; `path`: where it is on this machine.

    Raises:
        DataError: no path is known, or it is another corpus.
    """
    if path is None:
        raise DataError("the run has public text beside yours; name its folder with --public.")
    public = open_corpus(folder, path.absolute(), PUBLIC_STAMP)
    check_corpus(manifest, public)
    return public
