"""Text that must not move: the private regime against what it competes with.

    python benchmarks/private.py --split own --seed 1 --keep FOLDER [--steps 2520] [--json]
        [--set private.price_step=30]
    python benchmarks/private.py --plot docs/private.png FOLDER/result-*.json

The bundled text pack is dealt out to silos (`private_silos`), and the whole regime runs on it in
one process (`train.private_em`), with the demo's recipe for shapes and rates. Prints suffix
perplexity by silo and over all silos' held-out text, for the mixture, each silo's own model,
one dense model on pooled text, federated averaging of one dense model, random routing (the mean
loss of all experts), and oracle routing (every sequence to the expert with the lowest true
loss): all of the same tokens in training. `--steps` are those of all experts together. Trained
models' losses are kept in `--keep`, so that another split or price costs only what is new.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pack_corpus import pack_corpus
from private_models import Models, note
from private_plot import draw
from private_silos import SPLITS, Silo, deal

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, canonical_json, make_private_manifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.recipe import run_toml
from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.train.private_em import Exchange, PrivateOracle, run_private_em
from smalltalk_fed.train.silo_text import build_silo_router, prefix_scores

STEPS = 2520  # of all experts together: divides by 4, 8 and 9 experts
DENSE_BATCH_EXPERTS = 8  # the dense model's batch is that of so many experts
ROUTERS = 8  # the demo's chunk is for 4 routers


def configured(args: argparse.Namespace, silos: list[Silo], corpus: TokenCorpus) -> RunManifest:
    """The demo's recipe as a private run over these silos."""
    counts = [silo.experts for silo in silos]
    settings = [
        "run.regime=private",
        f"private.experts_of={json.dumps(counts)}",
        f"router.chunk_sequences={640 * sum(counts)}",
        f"expert.steps={args.steps // sum(counts)}",
        *args.set,
    ]
    text = run_toml("full", args.seed, sum(counts), len(counts), settings)
    config = parse_config(tomllib.loads(text), "the recipe")
    manifest = corpus.manifest
    return make_private_manifest(
        config, manifest.tokenizer_sha256, manifest.vocabulary, "private", 0
    )


def routing(manifest: RunManifest, silos: list[Silo], keep: Path) -> PrivateOracle:
    """The regime's routers, prices and segments, made once."""
    config = manifest.config
    facts = [
        config.run.model_dump(mode="json"),
        config.sequence.model_dump(mode="json"),
        config.router.model_dump(mode="json"),
        config.private.model_dump(mode="json"),
    ]
    key = hashlib.sha256(canonical_json(facts))
    for silo in silos:
        key.update(silo.train.ids.tobytes() + silo.heldout.ids.tobytes())
    file = keep / f"routing-{key.hexdigest()[:24]}.npz"
    if not file.exists():
        began = time.monotonic()

        def tell(exchange: Exchange) -> None:
            note(f"exchange {exchange.block}/{exchange.index}: {exchange.figures}")

        _save(run_private_em(manifest, silos, on_exchange=tell), file)
        note(f"routing: {time.monotonic() - began:.0f} s")
    return _load(file, manifest.experts)


def _save(oracle: PrivateOracle, file: Path) -> None:
    exchanges = [[x.block, x.index, x.prices_E.tolist(), x.figures] for x in oracle.exchanges]
    np.savez(
        file,
        prices_E=oracle.prices_E,
        share_E=oracle.share_E,
        counts=np.stack([x.counts_KxE for x in oracle.exchanges]),
        exchanges=np.frombuffer(json.dumps(exchanges).encode(), np.uint8),
        **{f"segment_{e}": ids for e, ids in oracle.segments.items()},
        **{f"router_{e}": np.frombuffer(x, np.uint8) for e, x in enumerate(oracle.routers)},
    )


def _load(file: Path, experts: int) -> PrivateOracle:
    with np.load(file) as kept:
        exchanges = json.loads(kept["exchanges"].tobytes())
        return PrivateOracle(
            routers=[kept[f"router_{e}"].tobytes() for e in range(experts)],
            prices_E=kept["prices_E"],
            exchanges=[
                Exchange(block, index, counts_KxE, np.asarray(prices), figures)
                for (block, index, prices, figures), counts_KxE in zip(
                    exchanges, kept["counts"], strict=True
                )
            ],
            segments={e: kept[f"segment_{e}"] for e in range(experts)},
            share_E=kept["share_E"],
        )


def router_scores(manifest: RunManifest, oracle: PrivateOracle, corpus: TokenCorpus) -> np.ndarray:
    """Scores of all held-out sequences under the final routers, fp32[N, E]."""
    models = [build_silo_router(manifest, e, data) for e, data in enumerate(oracle.routers)]
    return prefix_scores(manifest, models, corpus.heldout, np.arange(len(corpus.heldout)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One split and seed: perplexities by silo and over all."""
    args.keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    corpus = pack_corpus(args.keep)
    silos = deal(corpus, args.split, args.seed)
    manifest = configured(args, silos, corpus)
    seats = seat_experts(manifest.config)
    oracle = routing(manifest, silos, args.keep)
    models = Models(manifest, corpus, silos, args.keep)

    losses_Ex2xN = np.stack(
        [
            models.expert(seat, e, oracle.segments[e], float(oracle.share_E[e]))
            for seat, experts in enumerate(seats)
            for e in experts
        ]
    )
    experts_ExN = losses_Ex2xN[:, 1]
    scores_NxE = router_scores(manifest, oracle, corpus)
    winner_N = route(scores_NxE, oracle.prices_E)
    every_N = np.arange(len(winner_N))
    by_N = {
        "mixture": experts_ExN[winner_N, every_N],
        "unpriced": experts_ExN[route(scores_NxE), every_N],
        "random": experts_ExN.mean(axis=0),
        "oracle": experts_ExN.min(axis=0),
    }
    if "dense" not in args.without:
        by_N["dense"] = models.dense(DENSE_BATCH_EXPERTS)[1]
    if "fedavg" not in args.without:
        by_N["fedavg"] = models.fedavg(args.fedavg_rounds)[1]
    tokens = manifest.config.sequence.length - manifest.config.sequence.prefix
    rows, total = [], sum(len(silo.train) for silo in silos)
    for seat, silo in enumerate(silos):
        experts = seats[seat]
        alone_N = experts_ExN[experts[0]]
        if len(experts) > 1 and "alone" not in args.without:
            alone_N = models.alone(seat, float(oracle.share_E[list(experts)].sum()))[1]
        nats = {name: float(x_N[silo.judged].mean()) / tokens for name, x_N in by_N.items()}
        nats["alone"] = float(alone_N[silo.judged].mean()) / tokens
        home = np.isin(winner_N[silo.judged], list(experts)).mean()
        rows.append(
            {
                "silo": silo.name,
                "experts": len(experts),
                "train": len(silo.train),
                "counted": len(silo.heldout),
                "judged": len(silo.judged),
                "home": float(home),
                "nats": nats,
            }
        )
    sizes_K = np.array([row["train"] / total for row in rows])
    judged_K = np.array([row["judged"] for row in rows]) / sum(row["judged"] for row in rows)
    result = {
        "split": args.split,
        "seed": args.seed,
        "steps": args.steps,
        "set": args.set,
        "fedavg_rounds": args.fedavg_rounds,
        "silos": rows,
        "by_size": _over(rows, sizes_K),
        "by_sequence": _over(rows, judged_K),
        "prices": oracle.prices_E.tolist(),
        "exchanges": [{"block": x.block, "index": x.index, **x.figures} for x in oracle.exchanges],
    }
    name = f"result-{args.split}-{args.seed}{args.tag}.json"
    (args.keep / name).write_text(json.dumps(result, indent=1))
    np.savez(
        args.keep / f"matrices-{args.split}-{args.seed}{args.tag}.npz",
        losses_Ex2xN=losses_Ex2xN,
        scores_NxE=scores_NxE,
        prices_E=oracle.prices_E,
        experts_of=np.array([silo.experts for silo in silos]),
        train_K=np.array([len(silo.train) for silo in silos]),
        suffix_tokens=tokens,
        **{f"judged_{k}": silo.judged for k, silo in enumerate(silos)},
        **{f"counted_{k}": silo.heldout.ids for k, silo in enumerate(silos)},
        **{f"by_{name}": x_N for name, x_N in by_N.items()},
    )
    return result


def _over(rows: list[dict[str, Any]], weights_K: np.ndarray) -> dict[str, float]:
    names = rows[0]["nats"]
    return {
        name: float(weights_K @ np.array([row["nats"][name] for row in rows])) for name in names
    }


COLUMNS = ("mixture", "alone", "dense", "fedavg", "random", "oracle")


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: suffix perplexity."""
    columns = [name for name in COLUMNS if name in result["by_size"]]
    lines = [
        f"| split {result['split']}, seed {result['seed']} | sequences | at home | "
        + " | ".join(columns)
        + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for row in result["silos"]:
        figures = " | ".join(f"{np.exp(row['nats'][name]):.1f}" for name in columns)
        lines.append(f"| {row['silo']} | {row['train']} | {row['home']:.0%} | {figures} |")
    for name, what in (("by_size", "all, by size"), ("by_sequence", "all, by sequence")):
        figures = " | ".join(f"{np.exp(result[name][column]):.2f}" for column in columns)
        lines.append(f"| {what} | | | {figures} |")
    over = result["by_size"]
    ratios = [
        f"{np.exp(over['mixture'] - over[name]):.3f} of {name}"
        for name in ("oracle", "unpriced", "dense", "fedavg")
        if name in over
    ]
    lines.append("mixture, all text by size: " + ", ".join(ratios))
    return "\n".join(lines)


def main() -> None:
    """Run one split and seed, or draw what was run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--split", choices=SPLITS, default="own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--fedavg-rounds", type=int, default=20)
    parser.add_argument("--keep", type=Path, default=Path("private-benchmark"))
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument(
        "--without", action="append", default=[], choices=("dense", "fedavg", "alone")
    )
    parser.add_argument("--tag", default="", help="goes into the names of the results")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("results", type=Path, nargs="*", help="of earlier runs, to plot")
    args = parser.parse_args()
    if args.plot is not None:
        draw([json.loads(path.read_text()) for path in args.results], args.plot)
        return
    result = measure(args)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
