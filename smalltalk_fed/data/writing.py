"""Writing a corpus folder: shards that rotate at a size, digests taken on the way.

Rows go to disk as they come; nothing but the open file and one label a sequence stays in
memory. The caller gives an empty folder and renames it when all is well.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from smalltalk_fed.config.manifest import (
    CorpusManifest,
    ShardEntry,
    SplitManifest,
    canonical_json,
)
from smalltalk_fed.data.corpus import (
    LABEL_DTYPE,
    LABELS_FILE,
    MANIFEST_FILE,
    SOURCE_FILE,
    TOKEN_DTYPES,
    labels_file,
)
from smalltalk_fed.errors import DataError

MOST_LABELS = 1 << 16


class LabelNames:
    """Label names to ids, in the order in which they first appear."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def id_of(self, name: str) -> int:
        """Raises DataError when there are more than 65,536 different labels."""
        if name not in self._ids and len(self._ids) == MOST_LABELS:
            raise DataError(
                f"the label field has more than {MOST_LABELS} different values; it is no label "
                "of kinds of text."
            )
        return self._ids.setdefault(name, len(self._ids))

    @property
    def names(self) -> list[str]:
        """Names by id."""
        return list(self._ids)


class SplitWriter:
    """Writes the shards of one split, and a label for each of its sequences."""

    def __init__(
        self, folder: Path, name: str, sequence_tokens: int, dtype: str, shard_bytes: int
    ) -> None:
        self._folder, self._name = folder, name
        self._dtype = TOKEN_DTYPES[dtype]
        row_bytes = sequence_tokens * self._dtype.itemsize
        self._shard_rows = max(1, shard_bytes // row_bytes)
        self._shards: list[ShardEntry] = []
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._rows = 0
        self._labels: list[np.ndarray] = []

    @property
    def sequences(self) -> int:
        """Rows written so far."""
        return sum(shard.sequences for shard in self._shards) + self._rows

    def append(self, rows_NxS: np.ndarray, labels_N: np.ndarray) -> None:
        """Write rows and remember their labels."""
        self._labels.append(labels_N.astype(LABEL_DTYPE))
        while len(rows_NxS):
            if self._file is None:
                self._file = (self._folder / self._file_name).open("xb")
                self._digest = hashlib.sha256()
            taken = rows_NxS[: self._shard_rows - self._rows]
            data = taken.astype(self._dtype, copy=False).tobytes()
            self._file.write(data)
            self._digest.update(data)
            self._rows += len(taken)
            rows_NxS = rows_NxS[len(taken) :]
            if self._rows == self._shard_rows:
                self._end_shard()

    def finish(self, documents: int, labelled: bool) -> SplitManifest:
        """Close the last shard, write the labels if there are any, and describe the split."""
        self._end_shard()
        if labelled:
            labels = np.concatenate([*self._labels, np.empty(0, dtype=LABEL_DTYPE)])
            write_bytes(self._folder / labels_file(self._name), labels.tobytes())
        return SplitManifest(shards=tuple(self._shards), documents=documents)

    def close(self) -> None:
        """Close the open file without finishing it."""
        if self._file is not None:
            self._file.close()

    @property
    def _file_name(self) -> str:
        return f"{self._name}-{len(self._shards):05d}.bin"

    def _end_shard(self) -> None:
        if self._file is None:
            return
        _sync(self._file)
        self._file.close()
        entry = ShardEntry(
            file=self._file_name, sequences=self._rows, sha256=self._digest.hexdigest()
        )
        self._shards.append(entry)
        self._file, self._rows = None, 0


def write_descriptions(
    folder: Path,
    manifest: CorpusManifest,
    source: dict[str, Any],
    label_field: str | None,
    label_names: list[str],
) -> None:
    """Write corpus.json, source.json and, with a label field, labels.json."""
    write_bytes(folder / MANIFEST_FILE, canonical_json(manifest.model_dump(mode="json")))
    _write_json(folder / SOURCE_FILE, source)
    if label_field is not None:
        _write_json(folder / LABELS_FILE, {"field": label_field, "names": label_names})


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and have it on the disk before returning."""
    with path.open("xb") as file:
        file.write(data)
        _sync(file)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
