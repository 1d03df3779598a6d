"""Names out of files and messages, as paths: below one folder, and of plain files.

Rules: a name has forward slashes only and no empty part, `.`, `..`, NUL or drive, so that it
means the same on every system and can't leave the folder; a symbolic link on the way is
refused, since it could point anywhere. The folder itself is the caller's own choice and may be
a link. Whoever can write to the folder while it is read is not kept out by this.
"""

from __future__ import annotations

from pathlib import Path

from smalltalk_fed.errors import DataError, UserError, shown

_NOT_IN_NAMES = frozenset("\\:\0")


def below(folder: Path, name: str, error: type[UserError] = DataError) -> Path:
    """`folder`/`name`, which is below `folder` whatever the name is; links are not looked at.

    Raises:
        error: the name is not a plain relative one.
    """
    parts = name.split("/")
    if _NOT_IN_NAMES & set(name) or any(part in ("", ".", "..") for part in parts):
        raise error(f"'{shown(name)}' names no file inside {folder}; nothing else is read.")
    return folder.joinpath(*parts)


def plain(folder: Path, name: str, error: type[UserError] = DataError) -> Path:
    """`below`, and neither the file nor a folder on the way to it is a symbolic link.

    Whether the file is there is the caller's matter.

    Raises:
        error: it is one, or the name is not a plain relative one.
    """
    path, whole = folder, below(folder, name, error)
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise error(f"{path} is a symbolic link; only plain files inside {folder} are read.")
    return whole


def only_plain(folder: Path, error: type[UserError] = DataError) -> None:
    """Check that nothing below `folder` is a symbolic link or a device.

    Raises:
        error: something is, or the folder can't be read.
    """
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise error(f"{path} is not a plain file; nothing else is taken from {folder}.")
    except OSError as trouble:
        raise error(f"{folder} can't be read ({trouble.strerror}).") from None
