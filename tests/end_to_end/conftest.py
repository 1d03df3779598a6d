"""A small corpus of real text, made once by the product's own command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.deployment import SMALL_RUN, Deployment, deployment, good

from smalltalk_fed.data.packs import unpack_small

DOMAINS = ("python", "scripture")
DOCUMENTS = 14


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    pack = unpack_small(folder / "pack")
    for domain in DOMAINS:
        lines = (pack / f"{domain}.jsonl").read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["split"] == "train"][:DOCUMENTS]
        held = [line for line in lines if json.loads(line)["split"] != "train"][:2]
        (folder / f"{domain}.jsonl").write_text("\n".join(kept + held) + "\n")
    good(
        "smalltalk", "prepare", *(folder / f"{d}.jsonl" for d in DOMAINS),
        "--out", folder / "corpus",
        "--sequence-tokens", 64, "--vocabulary", 300, "--label-field", "domain",
        "--split-field", "split",
    )  # fmt: skip
    return folder / "corpus"


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path, small_corpus: Path) -> Iterator[Deploy]:
    """`deploy(**{"run.seed": 2})` makes a run of two experts that differs in these settings."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(
            deployment(tmp_path, small_corpus, {**SMALL_RUN, **changes})
        )
