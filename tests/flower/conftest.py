"""A tiny corpus, and Flower's apps with no waiting between looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.flower_runs import FlowerStage
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.flower import server_app


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def stage(corpus: TokenCorpus, tmp_path: Path) -> FlowerStage:
    return FlowerStage(tmp_path, corpus)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_app, "LOOK_S", 0.01)
        patch.setattr(server_app, "NODES_EVERY_S", 0.05)
        patch.setattr(server_app, "AGAIN_S", 0.05)
        yield
