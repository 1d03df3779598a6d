"""The bundled text pack dealt out to silos, and the private run over them.

    own     one domain a silo, one expert each
    two     two domains a silo, two experts each; `two-one`: with one expert
    spread  one domain a silo, but one of the domains is spread over two silos
    sizes   one domain a silo, of sizes from 1 to 20 in even ratios

Labels deal out the text and name the rows of the results; the runs never see them. What a silo
counts over is a held-out part as large against its training text as that of the whole pack, but
at least `HELDOUT_LEAST` sequences; it is judged on all held-out text of its domains.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_private_manifest
from smalltalk_fed.data.corpus import TokenCorpus, TokenSplit
from smalltalk_fed.demo.recipe import run_toml

Split = Literal["own", "two", "two-one", "spread", "sizes"]
SPLITS: tuple[Split, ...] = get_args(Split)

LARGEST_TO_SMALLEST = 20
HELDOUT_LEAST = 20

ROUTER_ROUNDS = 8  # the demo takes 24
CHUNK_PER_EXPERT = 640  # the demo's
BATCH_SEQUENCES = 8  # the demo's is 16
WARMUP_STEPS = 10  # of an expert's 90; the demo's 50 are of 600


class Picked:
    """Some rows of a split, numbered anew from 0."""

    def __init__(self, split: TokenSplit, ids: np.ndarray) -> None:
        self.split, self.ids = split, np.asarray(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: np.ndarray, tokens: int | None = None) -> np.ndarray:
        """[len(ids), tokens] token ids."""
        return self.split.rows(self.ids[np.asarray(ids)], tokens)


@dataclass(frozen=True)
class Silo:
    """A silo's text, how many experts it hosts, and what it is judged on."""

    name: str
    experts: int
    train: Picked
    heldout: Picked  # what it counts over
    judged: np.ndarray  # ids in the corpus's held-out split: all of its domains


def deal(corpus: TokenCorpus, split: Split, seed: int) -> list[Silo]:
    """Deal out the corpus; who gets which domains, and which sequences, is the seed's choice."""
    assert corpus.label_names is not None
    alike = "two" if split == "two-one" else split  # the same pairs, to be compared
    random = np.random.default_rng([seed, SPLITS.index(alike)])
    domains = list(corpus.label_names)
    held = {d: _of(corpus.heldout, domains.index(d)) for d in domains}
    train = {d: random.permutation(_of(corpus.train, domains.index(d))) for d in domains}
    if split == "own":
        return [_silo(corpus, d, 1, train[d], held[d]) for d in domains]
    if split in ("two", "two-one"):
        order = [domains[i] for i in random.permutation(len(domains))]
        return [
            _silo(
                corpus,
                f"{a} + {b}",
                2 if split == "two" else 1,
                np.concatenate([train[a], train[b]]),
                np.concatenate([held[a], held[b]]),
            )
            for a, b in zip(order[::2], order[1::2], strict=True)
        ]
    if split == "spread":
        spread = int(random.integers(len(domains)))
        name = domains[spread]
        half = len(train[name]) // 2
        silos = [_silo(corpus, d, 1, train[d], held[d]) for d in domains]
        parts = [
            _silo(corpus, f"{name}, part {i + 1}", 1, text, held[name][i::2], held[name])
            for i, text in enumerate((train[name][:half], train[name][half:]))
        ]
        silos[spread] = parts[0]
        return [*silos, parts[1]]
    # The larger a domain, the larger its silo can be.
    order = sorted(domains, key=lambda d: -len(train[d]))
    ratios = LARGEST_TO_SMALLEST ** -(np.arange(len(order)) / (len(order) - 1))
    whole = min(len(train[d]) / r for d, r in zip(order, ratios, strict=True))
    silos = []
    for domain, ratio in zip(order, ratios, strict=True):
        count = int(whole * ratio)
        part = count / len(train[domain])
        kept = max(HELDOUT_LEAST, round(part * len(held[domain])))
        counted = random.permutation(held[domain])[:kept]
        silos.append(
            _silo(corpus, domain, 1, train[domain][:count], np.sort(counted), held[domain])
        )
    return silos


def unused(corpus: TokenCorpus, silos: Sequence[Silo], count: int, seed: int) -> Picked:
    """So many training sequences that no silo has, drawn by the seed, as public text."""
    taken = np.concatenate([silo.train.ids for silo in silos])
    free = np.setdiff1d(np.arange(len(corpus.train)), taken)
    if len(free) < count:
        raise SystemExit(f"silos leave {len(free)} sequences, so {count} can't be public")
    return Picked(corpus.train, np.sort(np.random.default_rng(seed).permutation(free)[:count]))


def configured(
    corpus: TokenCorpus, silos: Sequence[Silo], seed: int, steps: int, settings: Sequence[str]
) -> RunManifest:
    """The demo's recipe as a private run over these silos; `steps` are of all experts."""
    counts = [silo.experts for silo in silos]
    every = [
        "run.regime=private",
        f"private.experts_of={json.dumps(counts)}",
        f"router.rounds={ROUTER_ROUNDS}",
        f"router.chunk_sequences={CHUNK_PER_EXPERT * sum(counts)}",
        f"expert.steps={steps // sum(counts)}",
        f"expert.batch_sequences={BATCH_SEQUENCES}",
        f"expert.optimizer.warmup_steps={WARMUP_STEPS}",
        *settings,
    ]
    text = run_toml("full", seed, sum(counts), len(counts), every)
    manifest = corpus.manifest
    return make_private_manifest(
        parse_config(tomllib.loads(text), "the recipe"),
        manifest.tokenizer_sha256,
        manifest.vocabulary,
        "private",
        0,
    )


def _of(split: TokenSplit, label: int) -> np.ndarray:
    assert split.labels is not None
    return np.flatnonzero(split.labels == label)


def _silo(
    corpus: TokenCorpus,
    name: str,
    experts: int,
    train: np.ndarray,
    counted: np.ndarray,
    judged: np.ndarray | None = None,
) -> Silo:
    return Silo(
        name=name,
        experts=experts,
        train=Picked(corpus.train, np.sort(train)),
        heldout=Picked(corpus.heldout, np.sort(counted)),
        judged=np.sort(counted if judged is None else judged),
    )
