"""A tiny corpus, a whole private run, and Flower's apps with no waiting between looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.flower_grid import ThreadGrid
from support.flower_runs import FlowerStage
from support.flower_silos import PLANTED, SiloStage, write_texts
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.flower import server_app


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def stage(corpus: TokenCorpus, tmp_path: Path) -> FlowerStage:
    return FlowerStage(tmp_path, corpus)


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    """A private run's public text; the silos' files are beside it, a sentence planted in each."""
    return TokenCorpus.open(write_texts(tmp_path_factory.mktemp("texts"), PLANTED))


@pytest.fixture(scope="session")
def silos(public: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> SiloStage:
    """The place of the private run of `silo_messages`."""
    return SiloStage(tmp_path_factory.mktemp("silos"), public)


@pytest.fixture(scope="session")
def silo_messages(silos: SiloStage) -> ThreadGrid:
    """A whole private run's messages."""
    with no_waiting():
        return silos.play()


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_app, "LOOK_S", 0.01)
        patch.setattr(server_app, "NODES_EVERY_S", 0.05)
        patch.setattr(server_app, "AGAIN_S", 0.05)
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_waiting() -> Iterator[None]:
    with no_waiting():
        yield
