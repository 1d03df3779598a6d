"""Documents as a stream of pieces, so that one huge document needs no more memory than many.

A document comes as one or more pieces, in order; only its last one has `last`. Where a
document is cut depends on its content alone, never on how it was read, so equal documents
give equal pieces. A cut falls between a character that is not white space and a space or
newline, where GPT-2's splitting rule always splits too: the pieces' tokens are the whole's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARACTERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document; `first` and `last` say where the document begins and ends.

    `label` and `split` are the values of the fields that were asked for, the same in all
    pieces of a document.
    """

    text: str
    first: bool
    last: bool
    label: str | None = None
    split: str | None = None


def pieces_of(
    chunks: Iterable[str],
    label: str | None = None,
    split: str | None = None,
    limit: int = PIECE_CHARACTERS,
) -> Iterator[Piece]:
    """Cut one document, given as consecutive chunks, into pieces of at most `limit` characters."""
    first, pending, size = True, [], 0
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size <= limit:
            continue
        text = "".join(pending)
        start = 0
        while len(text) - start > limit:
            cut = _cut(text, start, limit)
            yield Piece(text[start:cut], first, False, label, split)
            first, start = False, cut
        pending, size = [text[start:]], len(text) - start
    yield Piece("".join(pending), first, True, label, split)


def _cut(text: str, start: int, limit: int) -> int:
    for position in range(start + limit, start + limit // 2, -1):
        if text[position] in " \n" and not text[position - 1].isspace():
            return position
    return start + limit
