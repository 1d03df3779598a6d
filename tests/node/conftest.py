"""A loopback coordinator and a connection to it, over real sockets and mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smalltalk_node import joining, program
from smalltalk_node.connection import Connection
from support.loopback_coordinator import Loopback, Served, serving
from support.node_stage import Stage
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.telemetry.ledger import Ledger


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture
def loopback(served: Served) -> Loopback:
    return served.loopback


@pytest.fixture
def connection(served: Served, tmp_path: Path) -> Iterator[Connection]:
    folder = served.node_folder(tmp_path / "node")
    made = Connection(folder, folder.identity(), Ledger())
    yield made
    made.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "JOIN_FIRST_S", 0.01)
    monkeypatch.setattr(program, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("smalltalk_fed.core.session.RETRY_FIRST_S", 0.01)
    monkeypatch.setattr("smalltalk_node.patience.RETRY_FIRST_S", 0.01)


@pytest.fixture
def stage(served: Served, corpus: TokenCorpus, tmp_path: Path) -> Stage:
    return Stage(served, corpus, served.node_folder(tmp_path / "node"))
