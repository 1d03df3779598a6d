"""Federated averaging of one dense model on Flower: its strategy FedAvg, its simulation engine.

    python benchmarks/private_flower.py --keep FOLDER [--split own] [--seed 1] [--steps 720]
        [--fedavg-rounds 6]

The silos are Flower's virtual nodes, and each round's update is that of `private_fedavg`. The
same is computed by the plain loop that `private.py` compares with. Prints how far the two models
are apart, and their losses over all held-out text. Flower adds updates up in the order in which
they come, so the last bits may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pack_corpus import pack_corpus
from private_fedavg import Averaging, Weights
from private_models import Models
from private_silos import SPLITS, Split, configured, deal

STEPS = 720


def averaging(keep: str, split: Split, seed: int, steps: int, rounds: int) -> Averaging:
    """The same in every process."""
    torch.set_num_threads(1)
    corpus = pack_corpus(Path(keep))
    silos = deal(corpus, split, seed)
    return Averaging(configured(corpus, silos, seed, steps, []), silos, steps, rounds)


def on_flower(what: dict[str, Any], silos: int, cores: int) -> dict[str, np.ndarray]:
    """The model after all rounds, averaged by Flower's FedAvg over its simulation engine."""
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()

    def record(weights: Weights) -> ArrayRecord:
        return ArrayRecord({name: Array(weight) for name, weight in weights.items()})

    ended: dict[str, np.ndarray] = {}

    @client.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        work = averaging(**json.loads(str(config["what"])))
        average = {
            name: array.numpy() for name, array in message.content.array_records["arrays"].items()
        }
        seat, round_ = int(context.node_config["partition-id"]), int(config["server-round"]) - 1
        weights, sequences = work.update(seat, round_, average)
        content = RecordDict(
            {
                "arrays": record(weights),
                "metrics": MetricRecord({"num-examples": sequences}),
            }
        )
        return Message(content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=silos)
        result = strategy.start(
            grid,
            record(averaging(**what).begin()),
            num_rounds=what["rounds"],
            train_config=ConfigRecord({"what": json.dumps(what)}),
        )
        ended.update({name: array.numpy() for name, array in result.arrays.items()})

    run_simulation(
        server,
        client,
        num_supernodes=silos,
        backend_config={
            "init_args": {"num_cpus": cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return ended


def main() -> None:
    """Average on Flower and in the plain loop, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--split", choices=SPLITS, default="own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--fedavg-rounds", type=int, default=6)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("private-benchmark"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    keep = args.keep.resolve()
    what = {
        "keep": str(keep),
        "split": args.split,
        "seed": args.seed,
        "steps": args.steps,
        "rounds": args.fedavg_rounds,
    }
    plain = averaging(**what)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "FLWR_HOME": home,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        flower = on_flower(what, len(plain.silos), args.cores)
    corpus = pack_corpus(keep)
    models = Models(plain.manifest, corpus, plain.silos, args.steps, keep)
    losses = {
        "loop": models.fedavg(args.fedavg_rounds)[1],
        "flower": models.losses_of(plain.model(flower))[1],
    }
    tokens = plain.manifest.config.sequence.length - plain.manifest.config.sequence.prefix
    gap_N = np.abs(losses["flower"] - losses["loop"]) / tokens
    print(
        json.dumps(
            {
                **{name: float(np.exp(x_N.mean() / tokens)) for name, x_N in losses.items()},
                "largest_gap_nats_a_token": float(gap_N.max()),
            }
        )
    )


if __name__ == "__main__":
    main()
