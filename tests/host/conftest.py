"""A finished run that tests of the audit plant something wrong in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.local_run import finish_run, make_run_folder
from support.planted_run import ROUNDS, Planted
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.wire.signing import SigningKey


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, SigningKey]]:
    """A whole run and its nodes' keys; not to be changed."""
    folder = tmp_path_factory.mktemp("audited")
    corpus = write_tiny_corpus(folder / "corpus")
    run = make_run_folder(folder / "run", corpus, router={"rounds": ROUNDS}, audit={"rate": 0})
    return run, finish_run(run, corpus)


@pytest.fixture
def planted(finished: tuple[RunFolder, dict[str, SigningKey]], tmp_path: Path) -> Planted:
    """A copy of it."""
    folder, keys = finished
    shutil.copytree(folder.path, tmp_path / "run")
    return Planted(RunFolder.open(tmp_path / "run"), keys, folder.path.parent / "corpus")
