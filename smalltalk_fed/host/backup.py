"""A copy of a run folder that `serve` continues, made while a coordinator serves it or not.

Rules: the journal is copied as of one moment (SQLite's backup), after that the blobs, so that
none is missing that the copied journal names; one that vanished meanwhile (nothing needed it
any more) means that the journal is copied again. Every event and every blob that the copy
needs is checked before it counts. It is made beside the target and renamed: whole or not
there. Blobs are linked where the file system allows, since they never change: a backup on
the same disk costs little and doesn't outlive the disk. Left out are uploads under way, and
the finished mixture, which is made anew from the blobs.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.errors import DamagedBlob, UserError, WorldError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.database import explained
from smalltalk_fed.host.durable import sync, sync_tree
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.recovery import recover

TRIES = 5
_LEFT_OUT = ("blobs", "mixture", "lock")


@dataclass(frozen=True)
class BackupReport:
    """What a backup holds."""

    folder: str
    phase: str
    events: int
    blobs: int
    blob_bytes: int
    copied: int  # blobs that could not be linked


def backup(source: RunFolder, target: Path) -> BackupReport:
    """Make `target` a copy of the run as it is now.

    Raises:
        UserError: the target is not empty, or inside the run folder.
        WorldError: the disk refuses, or the run itself is damaged; there is no target then.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is not empty; name a new folder for the backup.")
    if source.path.resolve() in target.resolve().parents:
        raise UserError(f"{target} is inside the run folder; name a folder outside it.")
    making = target.with_name(f".{target.name}.making")
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True, mode=0o700)
        _copy_files(source.path, making)
        report = _copy_state(source, making, target)
        sync_tree(making)
        if target.exists():
            target.rmdir()
        making.rename(target)
        sync(target.parent)
    except OSError as error:
        raise WorldError(
            f"the backup {target} can't be made ({error.strerror}); make room there, or name "
            "another folder"
        ) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return report


def _copy_files(source: Path, making: Path) -> None:
    """All that is neither journal nor blobs: keys, manifest, tokenizer. Permissions are kept."""
    for entry in source.iterdir():
        if entry.name in _LEFT_OUT or entry.name.startswith((".", "journal.sqlite")):
            continue
        if entry.is_dir():
            shutil.copytree(entry, making / entry.name)
        else:
            shutil.copy2(entry, making / entry.name)


def _copy_state(source: RunFolder, making: Path, target: Path) -> BackupReport:
    blobs, copies = BlobStore(source.blobs), BlobStore(making / "blobs")
    copied = 0
    for _ in range(TRIES):
        _copy_journal(source.journal, making / "journal.sqlite")
        coordinator, events = _checked(source, making / "journal.sqlite")
        for digest in list(blobs.digests()):
            if not copies.has(digest):
                copied += _place(blobs.path(digest), copies.path(digest))
        needed = needed_blobs(coordinator.state)
        missing = copies.lost(needed.values())
        if not missing:
            for digest in needed:
                copies.verify(digest)
            sizes = [copies.size(digest) for digest in copies.digests()]
            phase = coordinator.state.phase.value
            return BackupReport(str(target), phase, events, len(sizes), sum(sizes), copied)
    raise DamagedBlob(missing[0], f"is missing in {source.blobs}: no backup was made")


def _copy_journal(source: Path, target: Path) -> None:
    for name in (target, target.with_name(f"{target.name}-wal")):
        name.unlink(missing_ok=True)
    with explained(source, "copied"):
        theirs, ours = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True), None
        try:
            ours = sqlite3.connect(target)
            theirs.backup(ours)
        finally:
            theirs.close()
            if ours is not None:
                ours.close()


def _checked(source: RunFolder, path: Path) -> tuple[Coordinator, int]:
    """The run as the copied journal has it, every event of it checked."""
    journal = Journal(path, create=False)
    try:
        events = journal.verify()
        return recover(source.manifest, journal, journal.last_at)[0], events
    finally:
        journal.close()


def _place(source: Path, target: Path) -> int:
    """Link a blob, or copy it where that can't be; 1 if it was copied. One that went is left."""
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return 0
    except OSError:  # another disk, or a file system without links
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return 0
        return 1
    return 0
