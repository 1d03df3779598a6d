"""How far a router's round is from the same round done again, honestly and not.

    python benchmarks/redo.py [--seed 7] [--experts 4] [--rounds 10] [--chunk 1024] [--liars 1]

Real rounds of the demo's recipe in one process (Algorithm 1), one thread, fp32. Every round of an
honest router is trained again from the same state on the same share: with two threads
(`threads`), from a state that is off by a part in a million (`noise`), and in bf16 (`bf16`);
and otherwise: on as much of the rest of the chunk (`lie`), on half of each (`half`). The first
`--liars` routers train on the rest in every round and go on from there (`always`). Held against the
round as it should be, over 64 sequences each of the share, the rest and held-out text: the root
mean square of the scores' differences and the largest, nats a token. A line of JSON a router and
round, then for each kind the least, median and largest of both, the first round apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import torch
from pack_corpus import pack_corpus
from torch import nn

from smalltalk_fed.config.manifest import RunManifest, make_manifest
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.recipe import run_toml
from smalltalk_fed.host.jobs import capacity
from smalltalk_fed.mixture.assignment import assign, random_assignment
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, training_order
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.model.state import state_to_bytes
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score
from smalltalk_fed.train.units import router_round, train_router

ASKED, NOISE = 64, 1e-6
Found = dict[str, tuple[float, float]]  # kind -> root mean square, largest


class Rounds:
    """One router's round at a time; `manifests`: as it is, with two threads, in bf16."""

    def __init__(self, arguments: argparse.Namespace, corpus: TokenCorpus) -> None:
        self.corpus, self.plain = corpus, make(arguments, corpus, 1, "float32")
        self.threads = make(arguments, corpus, 2, "float32")
        self.rough = make(arguments, corpus, 1, "bfloat16")

    def apart(
        self, e: int, number: int, before: bytes | None, share: np.ndarray, rest: np.ndarray,
        other: np.ndarray, handed_in: bytes | None,
    ) -> Found:  # fmt: skip
        """How far each kind of training is from the right one; `handed_in`: a liar's router."""

        def trained(manifest: RunManifest, text: np.ndarray, start: bytes | None = before):
            return train_router(manifest, self.corpus, e, number, start, text)[0]

        right = trained(self.plain, share)
        if handed_in is not None:
            kinds: dict[str, nn.Module] = {"always": build_router(self.plain, e, handed_in)}
        else:
            half = np.concatenate([share[::2], other[::2]])
            kinds = {
                "threads": trained(self.threads, share),
                "noise": trained(self.plain, share, self._moved(e, before)),
                "bf16": trained(self.rough, share),
                "lie": trained(self.plain, other),
                "half": trained(self.plain, half),
            }
        torch.set_num_threads(1)
        held, prefix = len(self.corpus.heldout), self.plain.config.sequence.prefix
        differences = []
        for split, ids in (
            (self.corpus.train, training_order(1, np.sort(share), ASKED, "a", "own", number)),
            (self.corpus.train, training_order(1, rest, ASKED, "a", "rest", number)),
            (self.corpus.heldout, np.arange(0, held, held // ASKED)[:ASKED]),
        ):
            scores = score([right, *kinds.values()], split, ids, prefix, batch_sequences=64)
            differences.append((scores[:, 1:] - scores[:, :1]).astype(np.float64) / (prefix - 1))
        apart_NxK = np.concatenate(differences)
        typical_K = np.sqrt(np.mean(apart_NxK**2, axis=0))
        largest_K = np.abs(apart_NxK).max(axis=0)
        return {
            kind: (round(float(typical_K[k]), 5), round(float(largest_K[k]), 5))
            for k, kind in enumerate(kinds)
        }

    def _moved(self, e: int, before: bytes | None) -> bytes:
        model, random = build_router(self.plain, e, before), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(1 + NOISE * torch.randn(each.shape, generator=random))
        return state_to_bytes(model)


def measure(rounds: Rounds, liars: int) -> dict[str, list[tuple[int, float, float]]]:
    """All rounds; by kind (round, root mean square, largest)."""
    manifest, corpus = rounds.plain, rounds.corpus
    config, experts = manifest.config, manifest.experts
    chunk, seed = config.router.chunk_sequences, config.run.seed
    capacity_E = capacity(manifest, chunk)
    expert_N = random_assignment(chunk, capacity_E, derive_key(seed, "first-assignment"))
    states: list[bytes | None] = [None] * experts
    found: dict[str, list[tuple[int, float, float]]] = {}
    for number in range(1, config.router.rounds + 1):
        ids = chunk_ids(seed, manifest.train_sequences, number - 1, chunk)
        results = []
        for e in range(experts):
            share, before = ids[expert_N == e], states[e]
            rest = np.setdiff1d(ids, share)
            other = training_order(number, rest, min(len(share), len(rest)), "lie", e)
            lies = e < liars
            text = np.sort(other) if lies else share
            results.append(router_round(manifest, corpus, e, number, before, text))
            handed_in = results[-1].parameters if lies else None
            row = rounds.apart(e, number, before, share, rest, other, handed_in)
            print(json.dumps({"round": number, "expert": e} | row), file=sys.stderr, flush=True)
            for kind, (typical, largest) in row.items():
                found.setdefault(kind, []).append((number, typical, largest))
        states = [result.parameters for result in results]
        if number < config.router.rounds:
            blocks = [decode_scores(r.score_block or b"", chunk) for r in results]
            expert_N = assign(np.stack(blocks, axis=1), capacity_E).expert_N
    return found


def make(
    arguments: argparse.Namespace, corpus: TokenCorpus, threads: int, dtype: str
) -> RunManifest:
    """The demo's recipe."""
    text = run_toml(
        "full", arguments.seed, arguments.experts, 1,
        (f"router.rounds={arguments.rounds}", f"router.chunk_sequences={arguments.chunk}",
         "expert.steps=1"),
    )  # fmt: skip
    table = tomllib.loads(text)
    table.setdefault("compute", {}).update(threads=threads, train_dtype=dtype)
    return make_manifest(RunConfig.model_validate(table), corpus.manifest, "redo", 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("seed", 7), ("experts", 4), ("rounds", 10), ("chunk", 1024), ("liars", 1)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Rounds(arguments, pack_corpus(Path(place))), arguments.liars)
    for kind, rows in found.items():
        for when, some in (
            ("round 1", [row for row in rows if row[0] == 1]),
            ("later", [row for row in rows if row[0] > 1]),
        ):
            if some:
                typical, largest = sorted(row[1] for row in some), max(row[2] for row in some)
                middle = typical[len(typical) // 2]
                three = f"{typical[0]:.5f} {middle:.5f} {typical[-1]:.5f}"
                print(f"{kind:8} {when:8} {len(some):3} rounds  {three}  largest {largest:.4f}")


if __name__ == "__main__":
    main()
