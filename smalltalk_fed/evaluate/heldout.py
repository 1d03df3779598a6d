"""Held-out sequences to evaluate on: of a corpus's held-out split, or out of text files.

Rules: text is cut exactly as `smalltalk prepare` cuts it (whole sequences of one document,
the remainder dropped), with the mixture's own tokenizer; a corpus must have been made with
that tokenizer. Labels come along for the report; nothing here routes by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.encoding import encode_in_order
from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.packing import Packer
from smalltalk_fed.data.reading import find_sources, read_pieces
from smalltalk_fed.errors import DataError


class Rows(Protocol):
    """Sequences gathered by id, as `data.corpus.TokenSplit` gives them."""

    def __len__(self) -> int: ...

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        ...


@dataclass(frozen=True)
class Heldout:
    """N sequences of S tokens; `labels_N` indexes `label_names` where there are labels."""

    sequences: Rows
    sequence_tokens: int
    labels_N: np.ndarray | None = None
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True)
class _Array:
    """Rows in memory."""

    tokens_NxS: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NxS)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        return self.tokens_NxS[ids, :tokens]


def heldout_of_tokens(tokens_NxS: np.ndarray) -> Heldout:
    """Sequences that are in memory already."""
    return Heldout(_Array(tokens_NxS), tokens_NxS.shape[1])


def heldout_of_corpus(folder: Path, tokenizer_sha256: str) -> Heldout:
    """The held-out split of a corpus folder.

    Raises:
        DataError: not a corpus, made with another tokenizer, or nothing is held out.
    """
    corpus = TokenCorpus.open(folder)
    if corpus.manifest.tokenizer_sha256 != tokenizer_sha256:
        raise DataError(
            f"{folder} was made with another tokenizer ({corpus.manifest.tokenizer_sha256[:12]}) "
            f"than the mixture ({tokenizer_sha256[:12]}), so its tokens mean something else; "
            "give the mixture's own corpus, or plain text with --text."
        )
    if not len(corpus.heldout):
        raise DataError(
            f"{folder} has no held-out sequences; prepare it with a held-out share, or give "
            "other text with --text."
        )
    return Heldout(
        corpus.heldout,
        corpus.manifest.sequence_tokens,
        corpus.heldout.labels,
        tuple(corpus.label_names or ()),
    )


def heldout_of_text(files: Sequence[Path], tokenizer_folder: Path, sequence_tokens: int) -> Heldout:
    """All documents of text files, cut into sequences of `sequence_tokens`.

    Raises:
        DataError: unreadable text, or no document fills one sequence.
    """
    packer = Packer(sequence_tokens, np.dtype(np.uint32))
    rows, tokens = [np.empty((0, sequence_tokens), dtype=np.uint32)], 0
    pieces = read_pieces(find_sources(files), Fields())
    for item in encode_in_order(pieces, tokenizer_folder, "uint32", workers=1):
        tokens += item.tokens.size
        rows.append(packer.add(item.tokens, item.piece.last)[0])
    tokens_NxS = np.concatenate(rows)
    if not len(tokens_NxS):
        names = ", ".join(str(file) for file in files)
        raise DataError(
            f"{names}: the text is too short: {tokens} tokens in all, and no document has the "
            f"{sequence_tokens} that one sequence needs; give longer text."
        )
    return heldout_of_tokens(tokens_NxS)
