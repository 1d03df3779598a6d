"""What a router gives away of its silo's text, with and without differential privacy.

    python benchmarks/canaries.py --seed 1 --keep FOLDER [--noise 0.5 1 2] [--json]

The bundled text pack is dealt to four silos, two domains each, with the demo's shapes and
amount of router training. In every silo some sequences begin with a *canary*: eight random
tokens that are its name and eight that are its secret, in 1, 4 or 16 copies. One router a silo
is trained plainly, with clipping alone, and with each noise; then

- exposure (Carlini et al. 2019, "The Secret Sharer"): log2 of the candidates over the rank of
  the secret's likelihood among 4,095 others of the same form, after its name; a router that
  learnt nothing of it gives 1.44 on average, the first of all 12;
- extraction: how many of the eight tokens greedy decoding after the name gives;
- cost: perplexity of the silos' own held-out prefixes, and how much of all held-out text goes
  to the silo that has its domain, with and without prices that balance (no noise on counts).

The noise's key is made of the seed here, so that figures can be made again; a run's is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from canary_text import COPIES, SECRET, SILOS, Rows, Silo, deal, exposure, extracted
from pack_corpus import pack_corpus
from transformers import LlamaForCausalLM

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.privacy import PrivacySection
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.demo.recipe import run_toml
from smalltalk_fed.mixture.agreement import nmi
from smalltalk_fed.mixture.assignment import assign
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, training_order
from smalltalk_fed.model.build import build_model
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import TrainPlan
from smalltalk_fed.train.privacy_cost import private_steps, routers_spent
from smalltalk_fed.train.private_sgd import PrivatePlan, train_privately
from smalltalk_fed.train.scoring import score
from smalltalk_fed.train.secret_noise import SecretNoise
from smalltalk_fed.train.units import router_optimizer

BLOCK_ROUNDS = 4
CPU = torch.device("cpu")


def fresh_router(config: RunConfig, vocabulary: int) -> LlamaForCausalLM:
    """The router that all silos start from."""
    key = derive_key(config.run.seed, "router", "common")
    return build_model(config.router.model, vocabulary, config.sequence.length, key)


def plainly(config: RunConfig, silo: Silo, seat: int, model: LlamaForCausalLM) -> None:
    """Round after round without noise, as a private run trains a seat's only router."""
    chunk = min(config.router.chunk_sequences // SILOS, len(silo.train))
    for round_ in range(1, config.router.rounds + 1):
        ids = chunk_ids(config.run.seed, len(silo.train), round_ - 1, chunk, f"silo {seat}")
        order = training_order(config.run.seed, np.sort(ids), chunk, "router-order", seat, round_)
        steps = math.ceil(chunk / config.router.batch_sequences)
        optimizer = router_optimizer(config.router.optimizer, steps)
        plan = TrainPlan(optimizer, steps, config.router.batch_sequences, config.sequence.prefix)
        train(model, silo.train, order, plan=plan, device=CPU)


def privately(
    config: RunConfig,
    silo: Silo,
    privacy: PrivacySection,
    noise: float,
    key: bytes,
    seat: int,
    model: LlamaForCausalLM,
) -> int:
    """Block after block under noise; returns the steps that were taken."""
    batch = privacy.expected_batch or config.router.batch_sequences
    chunk = min(config.router.chunk_sequences // SILOS, len(silo.train))
    drawn = SecretNoise(hashlib.sha256(key + bytes([seat])).digest())
    taken = 0
    for _ in range(config.router.rounds // BLOCK_ROUNDS):
        steps = private_steps(privacy, config.router.batch_sequences, BLOCK_ROUNDS * chunk)
        plan = PrivatePlan(
            router_optimizer(config.router.optimizer, steps),
            steps,
            batch,
            config.sequence.prefix,
            noise=noise,
            clip=privacy.router_clip,
        )
        train_privately(model, silo.train, len(silo.train), plan=plan, device=CPU, noise=drawn)
        taken += steps
    return taken


def leakage(
    models: list[LlamaForCausalLM], silos: list[Silo], seed: int, vocabulary: int
) -> list[dict[str, Any]]:
    """By number of copies: exposures, and what greedy decoding gave."""
    rows = []
    for copies in COPIES:
        found = [
            (exposure(model, canary, seed, vocabulary), extracted(model, canary))
            for model, silo in zip(models, silos, strict=True)
            for canary in silo.canaries
            if canary.copies == copies
        ]
        bits, right = np.array(found).T
        rows.append(
            {
                "copies": copies,
                "canaries": len(found),
                "exposure_mean": float(bits.mean()),
                "exposure_max": float(bits.max()),
                "tokens_extracted": float(right.mean()),
                "extracted": int((right == SECRET).sum()),
            }
        )
    return rows


def cost(config: RunConfig, models: list[LlamaForCausalLM], silos: list[Silo]) -> dict[str, float]:
    """Perplexity of own held-out prefixes, and where all held-out prefixes go."""
    prefix = config.sequence.prefix
    rows = Rows(np.concatenate([silo.heldout.tokens_NxS for silo in silos]))
    home_N = np.repeat(np.arange(SILOS), [len(silo.heldout) for silo in silos])
    scores_NxE = score(models, rows, np.arange(len(rows)), prefix, batch_sequences=64)
    own = scores_NxE[np.arange(len(rows)), home_N].astype(np.float64)
    nats = [-own[home_N == seat].mean() / (prefix - 1) for seat in range(SILOS)]
    prices_E = assign(scores_NxE, np.bincount(home_N), "optimal").prices_E
    free_N, priced_N = scores_NxE.argmax(axis=1), (scores_NxE - prices_E).argmax(axis=1)
    return {
        "perplexity": math.exp(float(np.mean(nats))),
        "home": float((free_N == home_N).mean()),
        "home_priced": float((priced_N == home_N).mean()),
        "nmi": nmi(home_N, free_N),
        "nmi_priced": nmi(home_N, priced_N),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All settings, one after the other."""
    torch.set_num_threads(1)
    corpus = pack_corpus(args.keep)
    vocabulary = corpus.manifest.vocabulary
    text = run_toml("full", args.seed, SILOS, SILOS, args.set)
    config = parse_config(tomllib.loads(text), "the recipe")
    private = parse_config(
        tomllib.loads(run_toml("full", args.seed, SILOS, SILOS, [*args.set, *args.set_private])),
        "the recipe",
    )
    silos = deal(corpus, args.seed, args.canaries)
    names: list[float | None] = [None, *args.noise, *([1e-6] if args.clip_alone else [])]
    rows = []
    for noise in names:
        began = time.monotonic()
        models = [fresh_router(config, vocabulary) for _ in silos]
        row: dict[str, Any] = {"noise": noise}
        spent = []
        for seat, (model, silo) in enumerate(zip(models, silos, strict=True)):
            if noise is None:
                plainly(config, silo, seat, model)
                continue
            privacy = PrivacySection(
                router_noise=noise, router_clip=args.clip, expected_batch=args.batch
            )
            key = derive_key(args.seed, "canaries", str(noise))
            steps = privately(private, silo, privacy, noise, key, seat, model)
            if noise >= 0.1:
                batch = config.router.batch_sequences
                spent.append(routers_spent(privacy, batch, len(silo.train), steps))
        row["seconds"] = round(time.monotonic() - began, 1)
        if spent:
            row["epsilon"] = [round(each.epsilon, 2) for each in spent]
            row["delta"] = [each.delta for each in spent]
        row |= cost(config, models, silos)
        row["canaries"] = leakage(models, silos, args.seed, vocabulary)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "seed": args.seed,
        "batch": args.batch,
        "clip": args.clip,
        "set": args.set,
        "set_private": args.set_private,
        "silos": [{"train": len(silo.train), "heldout": len(silo.heldout)} for silo in silos],
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Canaries in silos' text, and routers' leakage.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, required=True, help="where the prepared pack is kept")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.5, 1.0, 2.0])
    parser.add_argument("--clip-alone", action="store_true", help="also clipping without noise")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=512, help="privacy.expected_batch")
    parser.add_argument("--canaries", type=int, default=3, help="a silo, of each number of copies")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--set-private", action="append", default=[], metavar="KEY=VALUE", help="under noise alone"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    result = measure(parser.parse_args())
    if parser.parse_args().json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{'noise':>8}{'epsilon':>9}{'perplexity':>12}{'home':>7}{'priced':>8}  exposure by copies"
    )
    for row in result["rows"]:
        bits = "  ".join(
            f"{c['copies']}: {c['exposure_mean']:.1f} ({c['extracted']} of {c['canaries']} whole)"
            for c in row["canaries"]
        )
        print(
            f"{row['noise'] or 'none':>8}{max(row.get('epsilon', [math.inf])):>9.1f}"
            f"{row['perplexity']:>12.1f}{row['home']:>7.3f}{row['home_priced']:>8.3f}  {bits}"
        )


if __name__ == "__main__":
    main()
