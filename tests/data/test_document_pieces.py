"""A document's pieces are the document, whatever way it was read, and so are their tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from smalltalk_fed.data.pieces import pieces_of
from smalltalk_fed.data.tokenizer import load_tokenizer, train_tokenizer

# Much white space of many kinds, since that is where cutting could go wrong.
texts = st.one_of(
    st.text(st.sampled_from("ab' \n\t.1\x1c\u2003"), min_size=12, max_size=60),
    st.text(max_size=60),
)


def naive_lengths(text: str, limit: int) -> list[int]:
    """The twin: cut at the last good place in the second half of the limit, or at the limit."""
    if len(text) <= limit:
        return [len(text)]
    good = [
        place
        for place in range(limit // 2 + 1, limit + 1)
        if text[place] in (" ", "\n") and not text[place - 1].isspace()
    ]
    cut = max(good, default=limit)
    return [cut, *naive_lengths(text[cut:], limit)]


@given(text=texts, limit=st.integers(2, 9), reads=st.lists(st.integers(0, 80), max_size=5))
def test_pieces_depend_on_the_text_alone(text: str, limit: int, reads: list[int]) -> None:
    whole = list(pieces_of([text], "label", "split", limit))
    cuts = [0, *sorted(min(read, len(text)) for read in reads), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(cuts)]
    assert list(pieces_of(chunks, "label", "split", limit)) == whole
    assert "".join(piece.text for piece in whole) == text
    assert [len(piece.text) for piece in whole] == naive_lengths(text, limit)
    assert [piece.first for piece in whole] == [True] + [False] * (len(whole) - 1)
    assert [piece.last for piece in whole] == [False] * (len(whole) - 1) + [True]
    assert {(piece.label, piece.split) for piece in whole} == {("label", "split")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("pieces")
    training = ["a b ab  ab\n\nab 'a. b' 11 1 a\t\tb\n  a.\n.\n b's" * 20]
    train_tokenizer(iter(training), 300, folder)
    return load_tokenizer(folder)


@given(text=texts)
def test_pieces_give_the_documents_tokens(tokenizer: Tokenizer, text: str) -> None:
    pieces = list(pieces_of([text], limit=16))
    if any(not _is_clean(a.text, b.text) for a, b in itertools.pairwise(pieces)):
        return  # no white space near the limit: cut anywhere, other tokens, same text
    tokens = [index for piece in pieces for index in tokenizer.encode(piece.text).ids]
    assert tokens == tokenizer.encode(text).ids


def _is_clean(before: str, after: str) -> bool:
    return after[0] in " \n" and not before[-1].isspace()
