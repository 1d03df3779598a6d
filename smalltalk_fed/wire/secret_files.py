"""Files that only their owner may read: keys, certificates, what a node folder holds.

Rules: written at once or not at all, mode 0600, durable before the name is there; a key
that others can read is refused, since it may be known already.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from smalltalk_fed.errors import UserError, WorldError

OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def write_secret(path: Path, data: bytes) -> None:
    """Write `data` to `path` with mode 0600, replacing what was there.

    Raises:
        WorldError: the disk refuses; `path` is then as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise WorldError(f"{path} can't be written ({error.strerror or error}).") from error


def read_secret(path: Path, what: str) -> bytes:
    """Return the bytes of `path`; `what` names it in errors.

    Raises:
        UserError: it is missing, or others than the owner may read it.
        WorldError: it can't be read.
    """
    try:
        mode = path.stat().st_mode
        if os.name == "posix" and mode & OTHERS:
            raise UserError(
                f"{path} ({what}) can be read by others than you; run `chmod 600 {path}`, or make "
                "a new one if others had it."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} ({what}) does not exist.") from None
    except OSError as error:
        raise WorldError(f"{path} ({what}) can't be read ({error.strerror or error}).") from error


def private_folder(path: Path) -> Path:
    """Make `path` with mode 0700 if it is not there, and refuse one that others can write to.

    Raises:
        UserError: it is no folder, or others can write to it.
        WorldError: it can't be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except FileExistsError:
        raise UserError(f"{path} is a file; name a folder.") from None
    except OSError as error:
        raise WorldError(f"{path} can't be made ({error.strerror or error}).") from error
    if os.name == "posix" and mode & OTHERS_WRITE:
        raise UserError(
            f"others than you can write to {path}, and could replace its keys; run "
            f"`chmod go-w {path}`."
        )
    return path
