"""A loopback coordinator and a connection to it, over real sockets and mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smalltalk_node.connection import Connection
from support.loopback_coordinator import Loopback, Served, serving

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
