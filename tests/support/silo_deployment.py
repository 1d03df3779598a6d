"""A private run on loopback: silos as processes, each with a text file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.deployment import SMALL_RUN, Deployment, ending, good

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.packs import unpack_small

# Seat -> the domains whose text its silo has; the last one hosts two experts.
SILOS = {"a": ("python",), "b": ("scripture",), "c": ("german", "c")}
DOCUMENTS, PUBLIC_DOCUMENTS = 10, 4
# Planted in a document of every silo's. Which are held out goes by the hash of their text: with
# this sentence every silo has one.
SENTENCE = (
    "Zephyrine Quillwater buried the cobalt astrolabe beneath the seventh willow of Marrowbridge."
)
SETTINGS: dict[str, object] = {
    **SMALL_RUN,
    "run.regime": "private",
    "run.experts": 4,
    "private.experts_of": [1, 1, 2],
    "private.exchange_rounds": 2,
    "private.price_rounds": 2,
    "private.count_floor": 2,
    "private.heldout_sequences_min": 2,
    "private.public_share": 0.25,
}


class SiloDeployment(Deployment):
    """`corpus` is the public text, whose tokenizer the run uses; every node has its own, too."""

    def silo(self, name: str, seat: int, *more: object) -> None:
        """`smalltalk-node run` with the silo's own text, in the background."""
        self.start(
            name, "smalltalk-node", "run", "--dir", self.folder / name,
            "--corpus", self.folder / f"{name}.jsonl", "--public", self.corpus,
            "--seat", seat, "--threads", 1,
            "--record-egress", self.folder / f"{name}.egress", *more,
        )  # fmt: skip

    def text_of(self, name: str) -> TokenCorpus:
        """A silo's tokens, as its node made them."""
        (made,) = (self.folder / name / "text").iterdir()
        return TokenCorpus.open(made)


def write_texts(folder: Path, planted: str = SENTENCE) -> Path:
    """A text file a silo, a sentence planted in each; returns the corpus of public text."""
    pack = unpack_small(folder / "pack")
    for name, domains in SILOS.items():
        lines = []
        for domain in domains:
            documents = map(json.loads, (pack / f"{domain}.jsonl").read_text().splitlines())
            lines += [{"text": each["text"]} for each in list(documents)[:DOCUMENTS]]
        text = lines[1]["text"]
        lines[1]["text"] = f"{text[:200]} {planted} {text[200:]}"
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    public = (pack / "dictionary.jsonl").read_text().splitlines()[:PUBLIC_DOCUMENTS]
    (folder / "public.jsonl").write_text("\n".join(public) + "\n")
    good(
        "smalltalk", "prepare", folder / "public.jsonl", "--out", folder / "public",
        "--sequence-tokens", 64, "--vocabulary", 300,
    )  # fmt: skip
    return folder / "public"


@contextmanager
def silos(folder: Path, planted: str = SENTENCE, **settings: object) -> Iterator[SiloDeployment]:
    """A private deployment whose texts are written and whose children are gone at the end."""
    corpus = write_texts(folder, planted)
    with ending(SiloDeployment(folder, corpus, SETTINGS | settings)) as made:
        yield made
