"""A folder of this process for decoders that read their file by its path."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


@functools.cache
def place() -> Path:
    """A folder for this process' files, gone at its end."""
    made = Path(tempfile.mkdtemp(prefix="smalltalk-fuzz-"))
    atexit.register(_remove, made, os.getpid())
    return made


def _remove(made: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        shutil.rmtree(made, ignore_errors=True)


def written(folder: str, name: str, data: bytes, make: Callable[[Path], None]) -> Path:
    """The folder with everything as it should be, but `data` in the file of this name."""
    path = place() / folder
    if not path.exists():
        make(path)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch(mode=0o600)
    (path / name).write_bytes(data)
    return path
