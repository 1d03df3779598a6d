"""A private run over Flower's two apps: silos with files of text, and some public text.

Three seats, the last with two experts; each silo has words of its own, made of letters that the
others' hardly have. The tokenizer is that of the public text.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.flower_grid import node_config
from support.flower_runs import FlowerStage
from support.local_run import ADDRESSES
from support.tiny_run import LENGTH

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.prepare import PrepareOptions, prepare
from smalltalk_fed.host.folder import RunFolder

SILOS = ("a", "b", "c")  # by seat
WEIGHTS = ("operator", "never", "public")  # whom their owners give the experts
LETTERS = {"a": "abcdefgh", "b": "ijklmnop", "c": "qrstuvwx"}
DOCUMENTS = 60
PLANTED = (
    "Zephyrine Quillwater buried the cobalt astrolabe beneath the seventh willow of Marrowbridge."
)
RUN_TOML = f"""
[run]
experts = 4
regime = "private"
poll_s = 1.0
lease_s = 2.0
[sequence]
length = {LENGTH}
prefix = 8
[router]
model = {{ hidden = 8, layers = 1, heads = 2, feed_forward = 8 }}
rounds = 3
chunk_sequences = 40
batch_sequences = 8
optimizer = {{ learning_rate = 0.01, clip = 1.0 }}
[expert]
model = {{ hidden = 8, layers = 1, heads = 2, feed_forward = 8 }}
steps = 4
batch_sequences = 4
optimizer = {{ learning_rate = 0.01, clip = 1.0 }}
[private]
experts_of = [1, 1, 2]
exchange_rounds = 2
price_rounds = 2
count_floor = 2
heldout_sequences_min = 2
public_share = 0.25
[compute]
threads = 1
score_batch = 16
"""


def write_texts(folder: Path, planted: str = "") -> Path:
    """`a.jsonl` and so on, `planted` in each; the corpus of public text, whose folder is returned.

    Also `run.toml`.
    """
    for seed, (name, letters) in enumerate(LETTERS.items()):
        _write(folder / f"{name}.jsonl", letters, seed, DOCUMENTS, planted)
    _write(folder / "public.jsonl", "".join(LETTERS.values()), 9, DOCUMENTS // 2)
    (folder / "run.toml").write_text(RUN_TOML)
    prepare(
        PrepareOptions(
            inputs=(folder / "public.jsonl",),
            out=folder / "public",
            sequence_tokens=LENGTH,
            vocabulary=300,
            workers=1,
        )
    )
    return folder / "public"


def private_run_folder(path: Path, texts: Path) -> RunFolder:
    """The run over what `write_texts` has written in `texts`."""
    config = load_config(texts / "run.toml")
    return RunFolder.create(path, config, RUN_TOML, texts / "public", ADDRESSES, now=1.0)


def text_of(node: Path) -> TokenCorpus:
    """A silo's tokens, as its node made them."""
    (made,) = (node / "text").iterdir()
    return TokenCorpus.open(made)


@dataclass
class SiloStage(FlowerStage):
    """`corpus` is the public one; the silos' texts are beside it."""

    names: tuple[str, ...] = SILOS

    def __post_init__(self) -> None:
        self.texts = self.corpus.folder.parent
        self.folder = private_run_folder(self.path / "run", self.texts)

    def node_configs(self) -> dict[int, dict[str, Any]]:
        return {
            number: node_config(self.path, name, self.texts / f"{name}.jsonl")
            | {"public": str(self.corpus.folder), "seat": seat, "weights": WEIGHTS[seat]}
            for seat, (number, name) in enumerate(zip((101, 102, 103), self.names, strict=True))
        }


def _write(path: Path, letters: str, seed: int, documents: int, planted: str = "") -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices(letters, k=4)) for _ in range(40)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(documents)]
    if planted:
        texts[1] += f" {planted}"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
