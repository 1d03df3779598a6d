"""Documents out of .parquet files and Hugging Face data sets saved on disk.

A data set on disk is what `datasets`' `save_to_disk` writes: `state.json` naming Arrow
files, or `dataset_dict.json` naming one such folder a split; pyarrow reads both, so
`datasets` need not be installed. Rows are streamed batch by batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smalltalk_fed.config.inside import below
from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.pieces import Piece, pieces_of
from smalltalk_fed.errors import DataError, shown

DATASET_FILE = "state.json"
DATASET_DICT_FILE = "dataset_dict.json"

_BATCH_ROWS = 256


def read_parquet(path: Path, fields: Fields, count: Callable[[int], None]) -> Iterator[Piece]:
    """Documents of a Parquet file, one a row.

    Raises:
        DataError: damaged, without rows, or a field that is missing or of the wrong type.
    """
    size_bytes = path.stat().st_size if path.exists() else 0
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if not rows:
                raise DataError(f"{path} has no rows; leave it out.")
            fields.check(file.schema_arrow.names, str(path))
            done = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=fields.names):
                yield from _rows(batch, fields, path, done, None)
                before, done = done, done + batch.num_rows
                count(size_bytes * done // rows - size_bytes * before // rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet ({error}).") from None


def dataset_files(folder: Path) -> list[tuple[Path, str | None]]:
    """Arrow files of a data set on disk, in order, each with the name of its split if known.

    Raises:
        DataError: the folder is incomplete, or of an old kind that pyarrow can't read alone.
    """
    if (folder / DATASET_DICT_FILE).is_file():
        splits = _names(folder / DATASET_DICT_FILE, "splits")
        return [(file, split) for split in splits for file in _split_files(below(folder, split))]
    return [(file, None) for file in _split_files(folder)]


def _split_files(folder: Path) -> list[Path]:
    state = _json(folder / DATASET_FILE)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} is a data set that keeps a selection of its rows in a file of its own; "
            "load it with `datasets`, call flatten_indices() and save it again."
        )
    names = _names(folder / DATASET_FILE, "_data_files", "filename")
    if not names:
        raise DataError(f"{folder / DATASET_FILE} names no files; save the data set again.")
    return [below(folder, name) for name in names]


def read_arrow(
    path: Path, fields: Fields, count: Callable[[int], None], split: str | None
) -> Iterator[Piece]:
    """Documents of one Arrow file of a data set on disk, one a row.

    `split` is the data set's own name of the split; a split field, if wanted, goes before it.

    Raises:
        DataError: damaged, or a field that is missing or of the wrong type.
    """
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            fields.check(reader.schema.names, str(path))
            done, position = 0, 0
            for large in reader:
                for start in range(0, large.num_rows, _BATCH_ROWS):
                    batch = large.slice(start, _BATCH_ROWS)
                    yield from _rows(batch, fields, path, done, split)
                    done += batch.num_rows
                count(file.tell() - position)
                position = file.tell()
            count(file.size() - position)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Arrow data ({error}).") from None


def _rows(
    batch: pa.RecordBatch, fields: Fields, path: Path, done: int, split: str | None
) -> Iterator[Piece]:
    columns: dict[str, list[Any]] = {}
    for name in fields.names:
        try:
            columns[name] = batch.column(batch.schema.get_field_index(name)).to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, rows {done + 1} to {done + batch.num_rows}: field '{name}' is not valid "
                f"UTF-8 ({error.reason})."
            ) from None
    for row in range(batch.num_rows):
        record = {name: values[row] for name, values in columns.items()}
        text, label, own_split = fields.take(record, f"{path}, row {done + row + 1}")
        yield from pieces_of([text], label, own_split if fields.split else split)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise DataError(f"{path} can't be read ({shown(str(error), 200)}).") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object; save the data set again.")
    return value


def _names(path: Path, key: str, inner: str | None = None) -> list[str]:
    """A list of names in a JSON file, or of tables that each have one under `inner`."""
    listed = _json(path).get(key, [])
    try:
        names = [entry[inner] if inner else entry for entry in listed]
        if all(isinstance(name, str) for name in names):
            return names
    except (KeyError, TypeError):
        pass
    raise DataError(f"{path}: '{key}' is no list of names; save the data set again.")
