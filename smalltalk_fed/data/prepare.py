"""Text files to a corpus folder: a tokenizer, shards of token ids, digests, a held-out split.

Rules: one or two passes over the text (two when a tokenizer is trained), streaming; the
corpus's digest depends on the text, its order and the options alone, never on the number of
workers or the machine. Everything is written to a hidden folder beside `out` and renamed at
the end, so an interruption or a full disk leaves nothing half made.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from smalltalk_fed import __version__
from smalltalk_fed.config.manifest import CorpusManifest, sha256
from smalltalk_fed.data.corpus import TOKEN_DTYPES, TOKENIZER_FOLDER
from smalltalk_fed.data.encoding import EncodedPiece, encode_in_order
from smalltalk_fed.data.options import (
    DEFAULT_VOCABULARY,
    PrepareOptions,
    PrepareProgress,
    Side,
)
from smalltalk_fed.data.packing import NO_LABEL, Packer
from smalltalk_fed.data.pieces import Piece
from smalltalk_fed.data.reading import Source, find_sources, read_pieces
from smalltalk_fed.data.tokenizer import (
    TOKENIZER_FILE,
    end_of_text_id,
    load_tokenizer,
    take_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from smalltalk_fed.data.writing import LabelNames, SplitWriter, write_descriptions
from smalltalk_fed.errors import DataError, UserError, WorldError

__all__ = ["PrepareOptions", "PrepareProgress", "prepare"]

Progress = Callable[[PrepareProgress], None]

_PROGRESS_PIECES = 256


def prepare(options: PrepareOptions, progress: Progress | None = None) -> CorpusManifest:
    """Make the corpus folder `options.out`; returns its manifest.

    Raises:
        ConfigError: an option is out of bounds.
        DataError: text that can't be read, or too little of it.
        UserError: `out` is in use or can't be written.
        WorldError: the disk is full, or a worker process died.
    """
    options.check()
    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is not empty; give a new folder.")
    sources = find_sources(options.inputs)
    partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        manifest = _Preparation(options, sources, partial, progress).run()
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorldError(
                f"the disk that {out} is on is full; nothing was kept, free some space and "
                "start again."
            ) from None
        raise UserError(f"{out} can't be written ({error}).") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


@dataclass
class _Counts:
    """What one split got."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


class _Preparation:
    """One run of `prepare` into the empty folder `folder`."""

    def __init__(
        self,
        options: PrepareOptions,
        sources: list[Source],
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self._options, self._sources, self._folder = options, sources, folder
        self._tokenizer_folder = folder / TOKENIZER_FOLDER
        self._progress = progress or (lambda _: None)
        self._bytes_total = sum(source.size_bytes for source in sources)
        self._text_bytes = sum(source.text_bytes_estimate for source in sources)
        self._bytes_read = 0
        self._sample_bytes = 0
        self._counts: dict[Side, _Counts] = {"train": _Counts(), "heldout": _Counts()}

    def run(self) -> CorpusManifest:
        """Tokenizer, then tokens, then the descriptions."""
        started = time.monotonic()
        options = self._options
        vocabulary, join = self._make_tokenizer()
        dtype: Literal["uint16", "uint32"] = "uint16" if vocabulary <= 1 << 16 else "uint32"
        packers: dict[Side, Packer] = {}
        writers: dict[Side, SplitWriter] = {}
        for side in self._counts:
            packers[side] = Packer(options.sequence_tokens, TOKEN_DTYPES[dtype], join)
            writers[side] = SplitWriter(
                self._folder, side, options.sequence_tokens, dtype, options.shard_bytes
            )
        try:
            names = self._encode(packers, writers, dtype)
            self._check_enough(writers)
            labelled = options.label_field is not None
            splits = {
                side: writer.finish(self._counts[side].documents, labelled)
                for side, writer in writers.items()
            }
        finally:
            for writer in writers.values():
                writer.close()
        manifest = CorpusManifest(
            sequence_tokens=options.sequence_tokens,
            dtype=dtype,
            vocabulary=vocabulary,
            tokenizer_sha256=sha256((self._tokenizer_folder / TOKENIZER_FILE).read_bytes()),
            train=splits["train"],
            heldout=splits["heldout"],
        )
        source = self._source(manifest, packers, time.monotonic() - started)
        write_descriptions(self._folder, manifest, source, options.label_field, names)
        return manifest

    def _make_tokenizer(self) -> tuple[int, int | None]:
        """Train or take the tokenizer; its vocabulary, and the token that joins documents."""
        options, folder = self._options, self._tokenizer_folder
        if options.tokenizer is not None:
            take_tokenizer(options.tokenizer, folder)
        else:
            train_tokenizer(self._sample(), options.vocabulary or DEFAULT_VOCABULARY, folder)
        tokenizer = load_tokenizer(folder)
        if options.packing == "cut":
            return vocabulary_size(tokenizer), None
        end = end_of_text_id(folder, tokenizer)
        if end is None:
            raise DataError(
                f"the tokenizer {options.tokenizer} has no end-of-text token to join documents "
                "with; use packing 'cut'."
            )
        return vocabulary_size(tokenizer), end

    def _encode(
        self, packers: dict[Side, Packer], writers: dict[Side, SplitWriter], dtype: str
    ) -> list[str]:
        """Read, encode, pack and write everything; returns the labels' names."""
        labels = LabelNames()
        self._bytes_read = 0
        workers = self._options.worker_count(self._text_bytes)
        encoded = encode_in_order(self._read(), self._tokenizer_folder, dtype, workers)
        with closing(encoded):  # ends the worker processes also when this is interrupted
            self._pack(encoded, packers, writers, labels)
        for packer in packers.values():
            packer.finish()
        self._tell(writers)
        return labels.names

    def _pack(
        self,
        encoded: Iterable[EncodedPiece],
        packers: dict[Side, Packer],
        writers: dict[Side, SplitWriter],
        labels: LabelNames,
    ) -> None:
        side: Side = "train"
        for number, item in enumerate(encoded):
            piece = item.piece
            if piece.first:
                side = self._options.side_of(piece)
                self._counts[side].documents += 1
            counts = self._counts[side]
            counts.tokens += item.tokens.size
            counts.text_bytes += len(piece.text.encode())
            label = NO_LABEL if piece.label is None else labels.id_of(piece.label)
            writers[side].append(*packers[side].add(item.tokens, piece.last, label))
            if number % _PROGRESS_PIECES == 0:
                self._tell(writers)

    def _sample(self) -> Iterator[str]:
        """Training text for the tokenizer: an even sample of pieces up to the limit."""
        options = self._options
        limit = options.tokenizer_sample_bytes
        share = limit / max(1, self._text_bytes)
        self._bytes_read = 0
        documents, train = 0, False
        for number, piece in enumerate(self._read()):
            if piece.first:
                documents += 1
                train = options.side_of(piece) == "train"
            if number % _PROGRESS_PIECES == 0:
                self._progress(
                    PrepareProgress("tokenizer", self._bytes_read, self._bytes_total, documents, 0)
                )
            if train and (options.sampled(piece, share) or not self._sample_bytes):
                self._sample_bytes += len(piece.text.encode())
                yield piece.text
                if self._sample_bytes >= limit:
                    return

    def _read(self) -> Iterator[Piece]:
        """All pieces but those of empty documents."""
        for piece in read_pieces(self._sources, self._options.fields, self._count):
            if piece.first and piece.last and not piece.text.strip():
                continue
            yield piece

    def _count(self, read_bytes: int) -> None:
        self._bytes_read += read_bytes

    def _tell(self, writers: dict[Side, SplitWriter]) -> None:
        documents = sum(counts.documents for counts in self._counts.values())
        sequences = sum(writer.sequences for writer in writers.values())
        self._progress(
            PrepareProgress("tokens", self._bytes_read, self._bytes_total, documents, sequences)
        )

    def _check_enough(self, writers: dict[Side, SplitWriter]) -> None:
        if writers["train"].sequences:
            return
        train, heldout = self._counts["train"], self._counts["heldout"]
        length = self._options.sequence_tokens
        if not train.documents:
            raise DataError(
                f"there is no training text: {heldout.documents} documents were read and all of "
                "them are held out; give more documents or a smaller held-out share."
                if heldout.documents
                else "there is no text: every document is empty."
            )
        advice = "" if self._options.packing == "concat" else " or use packing 'concat'"
        raise DataError(
            f"no whole sequence of {length} tokens came out: the {train.documents} training "
            f"documents have {train.tokens} tokens together; give more text, lower the sequence "
            f"length{advice}."
        )

    def _source(
        self, manifest: CorpusManifest, packers: dict[Side, Packer], seconds: float
    ) -> dict[str, Any]:
        """source.json: for people, not part of the corpus's identity."""
        options = asdict(self._options)
        for name, value in options.items():
            if isinstance(value, Path):
                options[name] = str(value)
        options["inputs"] = [str(path) for path in self._options.inputs]
        splits = {
            side: {
                "documents": counts.documents,
                "text_bytes": counts.text_bytes,
                "tokens": counts.tokens,
                "dropped_tokens": packers[side].dropped_tokens,
                "sequences": getattr(manifest, side).sequences,
            }
            for side, counts in self._counts.items()
        }
        tokens = sum(counts.tokens for counts in self._counts.values())
        dropped = sum(packer.dropped_tokens for packer in packers.values())
        return {
            "smalltalk_fed": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "corpus_digest": manifest.digest,
            "bytes_read": self._bytes_total,
            "files": [
                {"path": str(source.path), "bytes": source.size_bytes} for source in self._sources
            ],
            "tokenizer_sample_bytes": self._sample_bytes,
            "dropped_token_share": round(dropped / max(1, tokens), 6),
            "splits": splits,
            "options": options,
        }
