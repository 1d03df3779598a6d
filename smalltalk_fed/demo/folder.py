"""The demonstration's output folder: claimed by a marker, replaced only if it was one.

    report.html report.json report.png      what the run showed
    mixture/ dense/ corpus/ run.toml        what the next commands use
    logs/                                   one file a program
    work/                                   text, coordinator and nodes; removed at the end

Rules: a folder with anything in it that is not an earlier demonstration's is refused.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.errors import UserError, WorldError

MARKER = ".smalltalk-demo"


@dataclass(frozen=True)
class DemoFolder:
    """Paths under the output folder."""

    path: Path

    @property
    def logs(self) -> Path:
        """One log a program."""
        return self.path / "logs"

    @property
    def work(self) -> Path:
        """What is removed at the end unless asked to stay."""
        return self.path / "work"

    @property
    def text(self) -> Path:
        """The unpacked text pack."""
        return self.work / "text"

    @property
    def node_corpus(self) -> Path:
        """The corpus as nodes see it: without labels."""
        return self.work / "corpus"

    @property
    def coordinator(self) -> Path:
        """The coordinator's run folder."""
        return self.work / "coordinator"

    @property
    def assignments(self) -> Path:
        """Who got which sequence at which round."""
        return self.work / "assignments.npz"

    @property
    def config(self) -> Path:
        """The run's configuration."""
        return self.path / "run.toml"

    @property
    def corpus(self) -> Path:
        """The corpus with labels, for the report only."""
        return self.path / "corpus"

    @property
    def dense(self) -> Path:
        """The dense model to compare with."""
        return self.path / "dense"

    @property
    def mixture(self) -> Path:
        """The result."""
        return self.path / "mixture"

    def node(self, index: int) -> Path:
        """Folder of one node, numbered from 1."""
        return self.work / f"node-{index}"

    def remove_work(self) -> None:
        """Drop what only the run itself needed."""
        shutil.rmtree(self.work, ignore_errors=True)


def claim(path: Path) -> tuple[DemoFolder, bool]:
    """Make `path` ready for a new demonstration; says whether an earlier one was replaced.

    Raises:
        UserError: it holds something else.
        WorldError: it can't be written.
    """
    replaced = False
    try:
        if path.exists():
            if not path.is_dir():
                raise UserError(f"{path} is a file; give another folder with --out.")
            if any(path.iterdir()):
                if not (path / MARKER).is_file():
                    raise UserError(
                        f"{path} is not empty and not an earlier demo's; give another folder "
                        "with --out."
                    )
                _empty(path)
                replaced = True
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).write_text("made by `smalltalk demo`, which may replace this folder\n")
        (path / "work").mkdir()
    except OSError as error:
        raise WorldError(f"{path} can't be written ({error.strerror}).") from None
    return DemoFolder(path), replaced


def _empty(path: Path) -> None:
    """Remove all but the marker, which goes last, so that an interruption leaves it claimed."""
    for entry in path.iterdir():
        if entry.name == MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
