"""Prompts for the samples: how a held-out document of each domain begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Prompt:
    """The first tokens of a held-out sequence, as text."""

    domain: str
    text: str


def heldout_prompts(corpus_folder: Path, tokens: int) -> list[Prompt]:
    """One prompt of about `tokens` tokens per label, from the first held-out sequence that has it.

    A character that the last token cuts in two is left out.
    """
    corpus = TokenCorpus.open(corpus_folder)
    labels, names = corpus.heldout.labels, corpus.label_names
    if labels is None or names is None:
        return []
    tokenizer = load_tokenizer(corpus.tokenizer_folder)
    prompts = []
    for label, name in enumerate(names):
        ids = np.flatnonzero(labels == label)
        if len(ids):
            row = corpus.heldout.rows(ids[:1], tokens)[0]
            text = tokenizer.decode(row.tolist(), skip_special_tokens=False)
            prompts.append(Prompt(name, text.rstrip("�")))
    return prompts
