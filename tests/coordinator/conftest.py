"""A coordinator that really serves, on loopback, with a tiny corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served_run import ServedRun, free_addresses, make_served_folder, served_run
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.data.corpus import TokenCorpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture
def served(tmp_path: Path, tiny_corpus: TokenCorpus) -> Iterator[ServedRun]:
    with served_run(make_served_folder(tmp_path / "run", tiny_corpus, free_addresses())) as run:
        yield run
