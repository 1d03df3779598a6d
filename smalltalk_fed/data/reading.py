"""Finding the text files that a person names, and streaming their documents.

Reads .txt, .jsonl (both also .gz and .zst), .parquet and Hugging Face data sets on disk. A
folder stands for all files of these kinds in it, at any depth, in the order of their
names; others in it (READMEs, metadata) are passed over, hidden ones too. A file that is
named itself must be of one of these kinds. Documents come in the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.lines import read_jsonl, read_txt
from smalltalk_fed.data.pieces import Piece
from smalltalk_fed.errors import DataError

EXTENSIONS = (
    ".txt",
    ".txt.gz",
    ".txt.zst",
    ".jsonl",
    ".jsonl.gz",
    ".jsonl.zst",
    ".parquet",
)
# How much more text than bytes a file has, roughly; only for sampling, never for results.
_EXPANSION = {".gz": 3, ".zst": 4, ".parquet": 3}


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read; `split` where a data set's folder says which split it is."""

    path: Path
    kind: str  # one of EXTENSIONS, or ".arrow"
    split: str | None
    size_bytes: int

    @property
    def text_bytes_estimate(self) -> int:
        """About how many bytes of text the file holds."""
        return self.size_bytes * _EXPANSION.get(self.path.suffix, 1)


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """The files behind `inputs`, in order.

    Raises:
        DataError: an input is missing, of an unknown kind, or a folder without text files, or
            a file is named twice.
    """
    sources: list[Source] = []
    for path in inputs:
        if path.is_dir():
            found = _in_folder(path)
            if not found:
                raise DataError(
                    f"{path} has no text files; what can be read is {', '.join(EXTENSIONS)} and "
                    "data sets saved by Hugging Face's `datasets`."
                )
            sources += found
        elif not path.exists():
            raise DataError(f"{path} does not exist.")
        elif (kind := _kind(path)) is None:
            raise DataError(
                f"{path} is of an unknown kind; what can be read is {', '.join(EXTENSIONS)} and "
                "folders of these."
            )
        else:
            sources.append(Source(path, kind, None, path.stat().st_size))
    seen: set[Path] = set()
    for source in sources:
        real = source.path.resolve()
        if real in seen:
            raise DataError(f"{source.path} is named twice; its documents would count twice.")
        seen.add(real)
    return sources


def read_pieces(
    sources: Sequence[Source], fields: Fields, count: Callable[[int], None] | None = None
) -> Iterator[Piece]:
    """All documents of `sources`; `count` is told of bytes of the files as they are read.

    Raises:
        DataError: see `lines` and `tables`; the message names the file, and line or row.
    """
    count = count or (lambda _: None)
    for source in sources:
        if source.kind.startswith(".txt"):
            yield from read_txt(source.path, fields, count)
        elif source.kind.startswith(".jsonl"):
            yield from read_jsonl(source.path, fields, count)
        else:
            from smalltalk_fed.data.tables import read_arrow, read_parquet

            if source.kind == ".parquet":
                yield from read_parquet(source.path, fields, count)
            else:
                yield from read_arrow(source.path, fields, count, source.split)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind in EXTENSIONS if name.endswith(kind)), None)


def _in_folder(folder: Path) -> list[Source]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from smalltalk_fed.data.tables import dataset_files

        found = []
        for path, split in dataset_files(folder):
            if not path.is_file():
                raise DataError(f"{path} is missing; save the data set {folder} again.")
            found.append(Source(path, ".arrow", split, path.stat().st_size))
        return found
    sources: list[Source] = []
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            sources += _in_folder(path)
        elif (kind := _kind(path)) is not None:
            sources.append(Source(path, kind, None, path.stat().st_size))
    return sources
