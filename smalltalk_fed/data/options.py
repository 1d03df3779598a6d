"""What `prepare` is asked for, what it tells while it works, and how documents are split."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.pieces import Piece
from smalltalk_fed.errors import ConfigError, DataError

DEFAULT_VOCABULARY = 32_000  # the paper's (arXiv 2410.03529, section 3.1)

Side = Literal["train", "heldout"]

SPLIT_NAMES: dict[str, Side] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "test", "testing", "eval"), "heldout"),
    **dict.fromkeys(("heldout", "held-out", "held_out"), "heldout"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How text becomes a corpus folder.

    Either `vocabulary` (train a tokenizer of that size; 32,000 if neither is given) or
    `tokenizer` (take this one). Held-out documents are those whose `split_field` says so,
    or, without one, a share of `heldout_fraction` chosen by a hash keyed with `seed`.
    """

    inputs: tuple[Path, ...]
    out: Path
    sequence_tokens: int
    vocabulary: int | None = None
    tokenizer: Path | None = None
    text_field: str = "text"
    label_field: str | None = None
    split_field: str | None = None
    heldout_fraction: float = 0.05
    packing: Literal["cut", "concat"] = "cut"
    workers: int | None = None  # None: all cores, fewer for little text
    seed: int = 1
    tokenizer_sample_bytes: int = 256 << 20
    shard_bytes: int = 256 << 20

    def check(self) -> None:
        """Raises ConfigError for a value out of bounds."""
        if not self.inputs:
            raise ConfigError("there is no input; name text files or folders.")
        if self.sequence_tokens < 4:
            raise ConfigError(
                f"a sequence of {self.sequence_tokens} tokens is too short; use at least 4."
            )
        if self.vocabulary is not None and self.tokenizer is not None:
            raise ConfigError(
                "a vocabulary size and an existing tokenizer were both given; a tokenizer "
                "brings its own vocabulary, so leave out one of them."
            )
        if not 0 <= self.heldout_fraction < 1:
            raise ConfigError(
                f"the held-out share is {self.heldout_fraction}; it must be at least 0 and "
                "below 1, such as 0.05."
            )
        if self.packing not in ("cut", "concat"):
            raise ConfigError(f"packing '{self.packing}' is unknown; use 'cut' or 'concat'.")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"{self.workers} workers can't work; use at least 1.")
        if self.seed < 0 or self.tokenizer_sample_bytes < 1 or self.shard_bytes < 1:
            raise ConfigError("the seed and the sizes in bytes must not be negative.")

    @property
    def fields(self) -> Fields:
        """Fields to read of every record."""
        return Fields(self.text_field, self.label_field, self.split_field)

    def worker_count(self, text_bytes: int) -> int:
        """Processes to encode `text_bytes` of text with; starting one pays from some MB on."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, min(cores or 1, text_bytes // (4 << 20)))

    def side_of(self, first: Piece) -> Side:
        """Where a document belongs, by its first piece.

        Equal documents land on the same side, in whatever file and order they come.

        Raises:
            DataError: the value of the split field is unknown.
        """
        if first.split is None:
            return "heldout" if self._fraction(first, b"split") < self.heldout_fraction else "train"
        side = SPLIT_NAMES.get(first.split.lower())
        if side is None:
            raise DataError(
                f"a document's split is '{first.split}', which is neither training nor held-out "
                f"text; known are {', '.join(SPLIT_NAMES)}."
            )
        return side

    def sampled(self, piece: Piece, share: float) -> bool:
        """Whether a piece is in the tokenizer's sample, a share of all chosen by hash."""
        return share >= 1 or self._fraction(piece, b"tokenizer") < share

    def _fraction(self, piece: Piece, purpose: bytes) -> float:
        key = f"{self.seed}".encode()[:64]
        digest = hashlib.blake2b(
            piece.text.encode(), digest_size=8, key=key, person=purpose.ljust(16, b"\0")
        )
        return int.from_bytes(digest.digest(), "big") / 2**64


@dataclass(frozen=True, slots=True)
class PrepareProgress:
    """How far `prepare` is; told after every batch of documents."""

    phase: Literal["tokenizer", "tokens"]
    bytes_read: int  # of the files as they lie on disk, in this phase
    bytes_total: int
    documents: int
    sequences: int
