"""By how much the same score differs between machines: what an audit must tolerate.

    python benchmarks/tolerance.py [--corpus FOLDER] [--json]

Routers of the demo's shape and of the paper's (router-4.4m), fresh and trained for some steps,
score the same prefixes of the bundled text with other threads, batches, precision and ways of
computing. What is compared is the sum over a prefix, in nats: each way against fp32 with one
thread in batches of 64, bf16 also against bf16 in other batches and threads. `largest` is over
all prefixes, `per_token` the largest through the M - 1 tokens, `typical` the root mean square.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pack_corpus import pack_corpus

from smalltalk_fed.config.run import RouterOptimizer
from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.mixture.permutation import derive_key, training_order
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan
from smalltalk_fed.train.scoring import score_one

CPU = torch.device("cpu")


def trained(
    preset: str, corpus: TokenCorpus, prefix: int, steps: int, rate: float
) -> torch.nn.Module:
    """A router after so many steps of 2,048 tokens; 0: as it begins."""
    batch = 2048 // prefix
    model = build_model(PRESETS[preset], corpus.manifest.vocabulary, prefix, derive_key(1, preset))
    if steps:
        order = training_order(1, np.arange(len(corpus.train)), batch * steps, "tolerance")
        plan = TrainPlan(
            optimizer=RouterOptimizer(learning_rate=rate, warmup_steps=5, clip=1.0),
            steps=steps,
            batch_sequences=batch,
            tokens=prefix,
            dtype="float32",
            compile_model=False,
        )
        train(model, corpus.train, order, plan=plan, device=CPU)
    return model


def plain(model: torch.nn.Module, corpus: TokenCorpus, ids: np.ndarray, prefix: int) -> np.ndarray:
    """Scores by transformers' own forward pass, all logits at once: another order of sums."""
    tokens = torch.from_numpy(corpus.heldout.rows(ids, prefix).astype(np.int64))
    parts = []
    with torch.inference_mode():
        for part in tokens.split(16):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            flat = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"
            )
            parts.append(-flat.view(len(part), -1).sum(dim=1))
    return torch.cat(parts).numpy()


def compare(
    corpus: TokenCorpus, preset: str, prefix: int, sequences: int, steps: int, rate: float
) -> Iterator[dict[str, object]]:
    """One router, scored in all ways."""
    model = trained(preset, corpus, prefix, steps, rate)
    ids = np.arange(sequences) * len(corpus.heldout) // sequences

    def scored(threads: int, batch: int, dtype: str) -> np.ndarray:
        torch.set_num_threads(threads)
        return score_one(
            model, corpus.heldout, ids, prefix, batch_sequences=batch, dtype=dtype
        ).astype(np.float64)

    ways: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "fp32, 2 threads": lambda: (base, scored(2, 64, "float32")),
        "fp32, batches of 7": lambda: (base, scored(1, 7, "float32")),
        "fp32, transformers' forward": lambda: (base, plain(model, corpus, ids, prefix)),
        "bf16 against fp32": lambda: (base, rough),
        "bf16, 2 threads": lambda: (rough, scored(2, 64, "bfloat16")),
        "bf16, batches of 7": lambda: (rough, scored(1, 7, "bfloat16")),
    }
    base, rough = scored(1, 64, "float32"), scored(1, 64, "bfloat16")
    for name, way in ways.items():
        one, other = way()
        error = np.abs(one - other)
        yield {
            "router": preset,
            "prefix": prefix,
            "steps": steps,
            "way": name,
            "mean_score": float(base.mean()),
            "largest": float(error.max()),
            "per_token": float(error.max()) / (prefix - 1),
            "typical": float(np.sqrt((error**2).mean())),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a corpus of sequences of 256 tokens or more")
    parser.add_argument("--json", action="store_true", help="one line each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        corpus = (
            TokenCorpus.open(arguments.corpus) if arguments.corpus else pack_corpus(Path(place))
        )
        for row in cases(corpus):
            if arguments.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{row['router']:12} M={row['prefix']:<4} {row['steps']:>4} steps  "
                f"{row['way']:28} largest {row['largest']:.5f}  typical {row['typical']:.5f}  "
                f"a token {row['per_token']:.6f}  (mean score {row['mean_score']:.0f})",
                flush=True,
            )


def cases(corpus: TokenCorpus) -> Iterator[dict[str, object]]:
    """Fresh and trained routers of both shapes."""
    for steps in (0, 100, 480):
        yield from compare(corpus, "router-mini", 64, 512, steps, 8e-3)
    for steps in (0, 20):
        yield from compare(corpus, "router-4.4m", 256, 32, steps, 1e-3)


if __name__ == "__main__":
    main()
