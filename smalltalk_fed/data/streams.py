"""Opening text files as byte streams: plain, gzip or zstandard.

`open_stream` gives a buffered binary stream with `readline(limit)` that raises DataError for
a damaged or truncated file. Bytes are counted as they lie on disk
(compressed), for progress.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from smalltalk_fed.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 1 << 18


class _Counting(io.RawIOBase):
    """Tells `count` how many bytes were read from `file`."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file, self._count = file, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._count(len(data))
        return len(data)


class _Zstandard(io.RawIOBase):
    """Decompressed bytes of a .zst file of one or more frames; a truncated one is an error.

    (zstandard's own stream_reader ends quietly when a frame is cut off.)
    """

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = self._new()
        self._input, self._output, self._started = b"", b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._output:
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame, self._started = self._new(), False
            data = self._input or self._file.read(_READ_BYTES)
            self._input = b""
            if not data:
                if self._started:
                    raise EOFError("the last frame is cut off")
                return 0
            self._started = True
            self._output = self._frame.decompress(data)
        taken = self._output[: len(buffer)]
        buffer[: len(taken)] = taken
        self._output = self._output[len(taken) :]
        return len(taken)


@contextmanager
def open_stream(path: Path, count: Callable[[int], None]) -> Iterator[io.BufferedReader]:
    """Decompressed bytes of `path`; `count` is told of every raw byte read.

    Raises:
        DataError: unreadable, damaged or truncated (raised inside the `with` block as well).
    """
    suffix = path.suffix.lower()
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    if suffix == ".zst":
        import zstandard

        failures = (*failures, zstandard.ZstdError)
    try:
        with path.open("rb", buffering=0) as file:
            raw: IO[bytes] = io.BufferedReader(_Counting(file, count), _READ_BYTES)
            if suffix == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw), _READ_BYTES)
            elif suffix == ".zst":
                yield io.BufferedReader(_Zstandard(raw), _READ_BYTES)
            else:
                yield raw  # type: ignore[misc]
    except failures as error:
        raise DataError(
            f"{path} can't be read to its end ({error}); if it is damaged, get it again."
        ) from None
