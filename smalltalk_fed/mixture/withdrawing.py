"""Takes withdrawn experts out of a mixture's folder: weights and router go, the entry says so.

Rules: mixture.json first, then the files, so that a reader in between finds a mixture that does
not ask for them; done again it changes nothing, and ends what was cut off. The prices of the
others and all of their files stay as they are: a prompt that another expert would have got gets
the same answer as before. Copies of the folder elsewhere are beyond its reach.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from smalltalk_fed.config.inside import plain
from smalltalk_fed.errors import WorldError
from smalltalk_fed.mixture.package import (
    MixtureError,
    MixtureManifest,
    read_manifest,
    write_mixture_manifest,
)

GONE = "by its owner"


def take_out(folder: Path, reasons: Mapping[int, str]) -> MixtureManifest:
    """Remove these experts (expert -> why) and their routers for good; returns the new manifest.

    Raises:
        MixtureError: the folder is no mixture, or has no such expert.
        WorldError: the disk refuses; done again it goes on.
    """
    before = read_manifest(folder)
    for expert in reasons:
        if not 0 <= expert < len(before.experts):
            raise MixtureError(f"{folder} has no expert {expert}.")
    after = before.model_copy(
        update={
            "experts": tuple(
                entry.model_copy(
                    update={
                        "enabled": False,
                        "withdrawn": entry.withdrawn or reasons[entry.index] or GONE,
                        "sha256": "",
                        "signature": "",
                    }
                )
                if entry.index in reasons
                else entry
                for entry in before.experts
            ),
            "routers": tuple(
                entry.model_copy(update={"sha256": ""}) if index in reasons else entry
                for index, entry in enumerate(before.routers)
            ),
        }
    )
    if after != before:
        write_mixture_manifest(folder, after)
    for expert in reasons:
        _remove(folder, after.routers[expert].file)
        _remove(folder, after.experts[expert].folder)
    return after


def _remove(folder: Path, name: str) -> None:
    """A file or folder of the mixture, if it is there; through no link."""
    path = plain(folder, name, MixtureError)
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WorldError(
            f"{path} was withdrawn and can't be removed ({error.strerror}); remove it by hand."
        ) from None
