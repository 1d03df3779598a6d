"""A tokenised corpus on disk: memory-mapped shards of token ids, addressed by sequence id.

Layout of a corpus folder:

    corpus.json            CorpusManifest, canonical JSON; its digest is the corpus's identity
    tokenizer/             tokenizer.json and what transformers' AutoTokenizer needs beside it
    train-00000.bin ...    rows of S little-endian uint16 or uint32
    heldout-00000.bin ...  likewise
    labels.json            optional: names of labels; never part of the digest
    train-labels.bin ...   optional: one little-endian uint16 a sequence
    source.json            where the text came from and what was dropped; for people

Rules: read only; a sequence's id is its position over the shards of its split; opening
checks names and sizes, and digests only where asked, so that many processes can open a
corpus at little cost; only plain files inside the folder are read, never through a symbolic
link. No torch. Making a corpus is `prepare`'s part.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from smalltalk_fed.config.inside import plain
from smalltalk_fed.config.manifest import CorpusManifest, SplitManifest
from smalltalk_fed.config.problems import first_problem
from smalltalk_fed.errors import DataError, shown

FORMAT_VERSION = 1
MANIFEST_FILE = "corpus.json"
TOKENIZER_FOLDER = "tokenizer"
LABELS_FILE = "labels.json"
SOURCE_FILE = "source.json"
LABEL_DTYPE: np.dtype[Any] = np.dtype("<u2")
TOKEN_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

_READ_BYTES = 1 << 22


def labels_file(split: str) -> str:
    """Name of the file of label ids of one split."""
    return f"{split}-labels.bin"


class TokenSplit:
    """One split of a corpus: N sequences of S tokens, gathered by id.

    Shards are mapped when first touched and never travel in a pickle.
    """

    def __init__(
        self,
        files: list[Path],
        counts: list[int],
        sequence_tokens: int,
        dtype: np.dtype[Any],
        labels_path: Path | None = None,
    ) -> None:
        """`files[i]` holds `counts[i]` rows of `sequence_tokens` integers of `dtype`."""
        self._files = files
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64), dtype=np.int64)
        self._starts = self._ends - np.asarray(counts, dtype=np.int64)
        self._sequence_tokens = sequence_tokens
        self._dtype = dtype
        self._labels_path = labels_path
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    @property
    def sequence_tokens(self) -> int:
        """S: tokens in a sequence."""
        return self._sequence_tokens

    @property
    def dtype(self) -> np.dtype[Any]:
        """Integer type of the token ids that `rows` gives."""
        return self._dtype

    @property
    def labels(self) -> np.ndarray | None:
        """uint16 [N] label ids, or None if the corpus was prepared without labels."""
        if self._labels_path is None:
            return None
        return np.fromfile(self._labels_path, dtype=LABEL_DTYPE)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """The first `tokens` (None: all S) token ids of every sequence of `ids`, in their order.

        Returns a new array [len(ids), tokens] of `dtype`; ids may repeat.

        Raises:
            DataError: an id is outside the split, or `tokens` is not within 1..S.
        """
        width = self._sequence_tokens if tokens is None else tokens
        if not 0 < width <= self._sequence_tokens:
            raise DataError(
                f"{width} tokens of a sequence were asked for, but the corpus has "
                f"{self._sequence_tokens} tokens a sequence."
            )
        wanted = np.asarray(ids)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise DataError("sequence ids must be a one-dimensional array of integers.")
        wanted = wanted.astype(np.int64, copy=False)
        out_NxT = np.empty((wanted.size, width), dtype=self._dtype)
        if not wanted.size:
            return out_NxT
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if outside.size:
            raise DataError(
                f"sequence id {int(outside[0])} does not exist; this split has {len(self)} "
                "sequences, numbered from 0."
            )
        if len(self._files) == 1:
            out_NxT[:] = self._shard(0)[wanted, :width]
            return out_NxT
        shards = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            local = wanted[here] - self._starts[shard]
            out_NxT[here] = self._shard(int(shard))[local, :width]
        return out_NxT

    def _shard(self, index: int) -> np.ndarray:
        if index not in self._maps:
            count = int(self._ends[index] - self._starts[index])
            try:
                mapped = np.memmap(
                    self._files[index],
                    dtype=self._dtype,
                    mode="r",
                    shape=(count, self._sequence_tokens),
                )
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{self._files[index]} can't be read any more ({error}); was the corpus "
                    "changed while in use?"
                ) from None
            self._maps[index] = np.asarray(mapped)  # indexing a memmap itself is slower
        return self._maps[index]


class TokenCorpus:
    """An opened corpus folder; see the module's docstring for the layout."""

    def __init__(
        self,
        folder: Path,
        manifest: CorpusManifest,
        train: TokenSplit,
        heldout: TokenSplit,
        label_names: list[str] | None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.train = train
        self.heldout = heldout
        self.label_names = label_names

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> TokenCorpus:
        """Open `folder`; with `verify`, read every shard and compare its digest.

        Raises:
            DataError: not a corpus, another format version, a file that is missing, of the
                wrong size or damaged.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        tokenizer = plain(folder, f"{TOKENIZER_FOLDER}/tokenizer.json")
        if not tokenizer.is_file():
            raise DataError(f"{tokenizer} is missing; prepare the corpus again or copy it whole.")
        if hashlib.sha256(tokenizer.read_bytes()).hexdigest() != manifest.tokenizer_sha256:
            raise DataError(
                f"{tokenizer} is not the tokenizer that {folder / MANIFEST_FILE} names; its "
                "tokens would mean something else, so copy the corpus again."
            )
        names = _read_label_names(folder)
        splits = []
        for name, split in (("train", manifest.train), ("heldout", manifest.heldout)):
            splits.append(_open_split(folder, name, split, manifest, names is not None))
            if verify:
                _verify_split(folder, split, manifest)
        return cls(folder, manifest, splits[0], splits[1], names)

    @property
    def digest(self) -> str:
        """Identity of the text and its tokens."""
        return self.manifest.digest

    @property
    def tokenizer_folder(self) -> Path:
        """What AutoTokenizer.from_pretrained loads."""
        return self.folder / TOKENIZER_FOLDER


def _read_manifest(folder: Path) -> CorpusManifest:
    path = plain(folder, MANIFEST_FILE)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; give a folder that `smalltalk prepare` made.")
    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not a corpus: it has no {MANIFEST_FILE}; make one with "
            "`smalltalk prepare`."
        ) from None
    except (OSError, RecursionError, ValueError) as error:
        why = shown(str(error), 200)
        raise DataError(f"{path} can't be read ({why}); copy the corpus again.") from None
    version = table.get("format_version") if isinstance(table, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {shown(repr(version))}, but this program reads version "
            f"{FORMAT_VERSION}; prepare the corpus with the same version of smalltalk-fed."
        )
    try:
        return CorpusManifest.model_validate(table)
    except ValidationError as error:
        where, what = first_problem(error)
        raise DataError(
            f"{path} is damaged at '{where}' ({what}); copy the corpus again."
        ) from None


def _read_label_names(folder: Path) -> list[str] | None:
    path = plain(folder, LABELS_FILE)
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_bytes())["names"]
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        why = shown(repr(error), 200)
        raise DataError(f"{path} can't be read ({why}); prepare the corpus again.") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: 'names' is not a list of strings; prepare the corpus again.")
    return names


def _open_split(
    folder: Path, name: str, split: SplitManifest, manifest: CorpusManifest, labelled: bool
) -> TokenSplit:
    dtype = TOKEN_DTYPES[manifest.dtype]
    for shard in split.shards:
        expected_bytes = shard.sequences * manifest.sequence_tokens * dtype.itemsize
        _check_size(plain(folder, shard.file), expected_bytes)
    labels_path = None
    if labelled:
        labels_path = plain(folder, labels_file(name))
        _check_size(labels_path, split.sequences * LABEL_DTYPE.itemsize)
    return TokenSplit(
        [folder / shard.file for shard in split.shards],
        [shard.sequences for shard in split.shards],
        manifest.sequence_tokens,
        dtype,
        labels_path,
    )


def _check_size(path: Path, expected_bytes: int) -> None:
    try:
        found_bytes = path.stat().st_size
    except OSError:
        raise DataError(f"{path} is missing; copy the corpus again.") from None
    if found_bytes != expected_bytes:
        raise DataError(
            f"{path} has {found_bytes} bytes instead of {expected_bytes}; copy the corpus again."
        )


def _verify_split(folder: Path, split: SplitManifest, manifest: CorpusManifest) -> None:
    dtype = TOKEN_DTYPES[manifest.dtype]
    for shard in split.shards:
        path = folder / shard.file
        digest, largest = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
                largest = max(largest, int(np.frombuffer(block, dtype=dtype).max()))
        if digest.hexdigest() != shard.sha256:
            raise DataError(f"{path} is damaged: its digest differs; copy the corpus again.")
        if largest >= manifest.vocabulary:
            raise DataError(
                f"{path} has token id {largest}, but the vocabulary is {manifest.vocabulary}; "
                "prepare the corpus again."
            )
