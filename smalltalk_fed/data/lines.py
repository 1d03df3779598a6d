"""Documents out of .txt and .jsonl, compressed or not.

A .txt file is one document, or several if some of its lines are exactly `<|endoftext|>`:
those lines separate documents and belong to none. A .jsonl file has one JSON object a line;
blank lines are skipped. Both are UTF-8; a byte order mark is dropped. A .txt of any size is
streamed, a line of .jsonl is held whole.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.pieces import Piece, pieces_of
from smalltalk_fed.data.streams import open_stream
from smalltalk_fed.errors import DataError, shown

SEPARATOR = b"<|endoftext|>"
LARGEST_LINE_BYTES = 1 << 30

_FRAGMENT_BYTES = 1 << 20


def read_txt(path: Path, fields: Fields, count: Callable[[int], None]) -> Iterator[Piece]:
    """Documents of a text file.

    Raises:
        DataError: empty, binary (a NUL byte), not UTF-8, or a label or split was asked for.
    """
    if fields.label or fields.split:
        raise DataError(
            f"{path}: a .txt file has no fields, so no label or split can be read from it; use "
            ".jsonl or .parquet."
        )
    with open_stream(path, count) as stream:
        if not stream.peek(1):
            raise DataError(f"{path} is empty; leave it out.")
        text = _TextStream(path, stream)
        while not text.at_end:
            yield from pieces_of(text.document())


class _TextStream:
    """Splits a byte stream at separator lines, without ever holding a document."""

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self._path, self._stream = path, stream
        self._offset = 0
        self.at_end = False

    def document(self) -> Iterator[str]:
        """Chunks of text up to the next separator line or the file's end."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        line_start, document_start = True, self._offset
        while True:
            fragment = self._stream.readline(_FRAGMENT_BYTES)
            if not fragment:
                self.at_end = True
                break
            separator = line_start and fragment.strip() == SEPARATOR
            line_start = fragment.endswith(b"\n")
            if separator:
                self._offset += len(fragment)
                break
            if (nul := fragment.find(b"\0")) >= 0:
                raise DataError(
                    f"{self._path} is not text: it has a NUL byte at offset {self._offset + nul}."
                )
            kept = len(decoder.getstate()[0])
            yield self._decode(decoder, fragment, self._offset - kept, document_start)
            self._offset += len(fragment)
        self._decode(decoder, b"", self._offset - len(decoder.getstate()[0]), document_start)

    def _decode(
        self,
        decoder: codecs.IncrementalDecoder,
        fragment: bytes,
        offset: int,
        document_start: int,
    ) -> str:
        try:
            text = decoder.decode(fragment, final=not fragment)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._path} is not valid UTF-8: byte offset {offset + error.start} "
                f"({error.reason}); convert it first."
            ) from None
        if offset == document_start == 0:
            return text.removeprefix("\ufeff")
        return text


def read_jsonl(path: Path, fields: Fields, count: Callable[[int], None]) -> Iterator[Piece]:
    """Documents of a file with one JSON object a line.

    Raises:
        DataError: empty, a line that is not UTF-8, not JSON, not an object or too long, or a
            field that is missing or of the wrong type; names the line.
    """
    with open_stream(path, count) as stream:
        if not stream.peek(1):
            raise DataError(f"{path} is empty; leave it out.")
        offset, number = 0, 0
        while line := stream.readline(LARGEST_LINE_BYTES):
            number += 1
            where = f"{path}, line {number}"
            if len(line) == LARGEST_LINE_BYTES and not line.endswith(b"\n"):
                raise DataError(f"{where}: it is longer than {LARGEST_LINE_BYTES} bytes.")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                text, label, split = fields.take(_parse(line, where, offset), where)
                yield from pieces_of([text], label, split)
            offset += len(line)


def _parse(line: bytes, where: str, offset: int) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: it is not valid UTF-8 (byte offset {offset + error.start} of the file, "
            f"{error.reason}); convert it first."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: it is not valid JSON ({shown(str(error), 200)}).") from None
    if not isinstance(value, dict):
        raise DataError(f'{where}: it is not a JSON object, such as {{"text": "..."}}.')
    return value
