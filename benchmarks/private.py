"""Text that must not move: the private regime against what it competes with.

    python benchmarks/private.py --keep FOLDER [--split own sizes] [--seed 1 2 3]
        [--steps 720] [--set private.steps=equal --tag=-equal]
        [--public 1024 --branch 0.5 | --public 1024 --set private.public_share=0.5]
    python benchmarks/private.py --table FOLDER/result-*.json
    python benchmarks/private.py --plot docs/private.png FOLDER/result-*.json

The bundled text pack is dealt out to silos (`private_silos`), and the whole regime runs on it in
one process (`train.private_em`), with the demo's shapes and rates. Prints suffix perplexity by
silo and over all silos' held-out text, for the mixture, each silo's own model, one dense model
on pooled text, federated averaging of one dense model, random routing (the mean loss of all
experts), and oracle routing (every sequence to the expert with the lowest true loss): all of the
same tokens in training. `--steps` are those of all experts together, where silos have all of the
pack; on less text they are fewer, so that text is seen as often. With `--branch` all experts start
from one model that is trained on public text for that part of the steps. Trained models' losses and
finished results are kept in `--keep`: a command that was ended goes on where it was, and another
split or price costs only what is new.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pack_corpus import pack_corpus
from private_models import Models, note, public_seed
from private_plot import draw
from private_routing import divide_public, router_scores, routing
from private_silos import SPLITS, Picked, Silo, Split, configured, deal, unused
from private_table import over, print_result, print_seeds

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.mixture.silo_prices import expert_shares
from smalltalk_fed.train.private_em import PrivateOracle

STEPS = 720  # of all experts together: divides by 4, 8 and 9 experts
DENSE_BATCHES = 8  # the dense model's batch is that of so many experts


class Study:
    """One split and seed."""

    def __init__(self, args: argparse.Namespace, split: Split, seed: int) -> None:
        self.args, self.split, self.seed = args, split, seed
        self.corpus: TokenCorpus = pack_corpus(args.keep)
        self.silos: list[Silo] = deal(self.corpus, split, seed)
        part = sum(len(silo.train) for silo in self.silos) / len(self.corpus.train)
        self.steps = round(args.steps * part / DENSE_BATCHES) * DENSE_BATCHES
        self.name = f"{split}-{seed}{args.tag}"
        self.settings = {
            "split": split,
            "seed": seed,
            "steps": self.steps,
            "set": args.set,
            "public": args.public,
            "branch": args.branch,
            "fedavg_rounds": args.fedavg_rounds,
            "contenders": sorted({"dense", "dense_small", "fedavg", "alone"} - set(args.without)),
        }

    def result(self) -> dict[str, Any]:
        """Perplexities by silo and over all: kept ones, if they are of the same settings."""
        file = self.args.keep / f"result-{self.name}.json"
        if file.exists():
            kept: dict[str, Any] = json.loads(file.read_text())
            if kept["settings"] == self.settings:
                return kept
        note(f"{self.name}: {self.settings}")
        result = self._measure()
        file.write_text(json.dumps(result, indent=1))
        return result

    def _measure(self) -> dict[str, Any]:
        manifest = self._manifest(self.silos)
        models = Models(manifest, self.corpus, self.silos, self.steps, self.args.keep)
        seats = seat_experts(manifest.config)
        oracle = routing(manifest, self.silos, self.args.keep)
        losses_Ex2xN = self._experts(manifest, models, oracle)
        experts_ExN = losses_Ex2xN[:, 1]
        scores_NxE = router_scores(manifest, oracle, self.corpus.heldout)
        winner_N = route(scores_NxE, oracle.prices_E)
        every_N = np.arange(len(winner_N))
        by_N = {
            "mixture": experts_ExN[winner_N, every_N],
            "unpriced": experts_ExN[route(scores_NxE), every_N],
            "random": experts_ExN.mean(axis=0),
            "oracle": experts_ExN.min(axis=0),
        }
        contenders = self.settings["contenders"]
        if "dense" in contenders:
            by_N["dense"] = models.dense(DENSE_BATCHES)[1]
        if "dense_small" in contenders:
            by_N["dense_small"] = models.dense(1)[1]
        if "fedavg" in contenders:
            by_N["fedavg"] = models.fedavg(self.args.fedavg_rounds)[1]
        alone_KxN = self._alone(experts_ExN) if "alone" in contenders else None
        tokens = manifest.config.sequence.length - manifest.config.sequence.prefix
        rows = []
        for seat, silo in enumerate(self.silos):
            nats = {name: float(x_N[silo.judged].mean()) / tokens for name, x_N in by_N.items()}
            if alone_KxN is not None:
                nats["alone"] = float(alone_KxN[seat, silo.judged].mean()) / tokens
            rows.append(
                {
                    "silo": silo.name,
                    "experts": silo.experts,
                    "train": len(silo.train),
                    "counted": len(silo.heldout),
                    "judged": len(silo.judged),
                    "home": float(np.isin(winner_N[silo.judged], list(seats[seat])).mean()),
                    "nats": nats,
                }
            )
        np.savez(
            self.args.keep / f"matrices-{self.name}.npz",
            losses_Ex2xN=losses_Ex2xN,
            scores_NxE=scores_NxE,
            prices_E=oracle.prices_E,
            experts_of=np.array([silo.experts for silo in self.silos]),
            train_K=np.array([len(silo.train) for silo in self.silos]),
            suffix_tokens=tokens,
            **{f"judged_{k}": silo.judged for k, silo in enumerate(self.silos)},
            **{f"counted_{k}": silo.heldout.ids for k, silo in enumerate(self.silos)},
            **{f"by_{name}": x_N for name, x_N in by_N.items()},
        )
        return {
            "settings": self.settings,
            "silos": rows,
            "by_size": over(rows, "train"),
            "by_sequence": over(rows, "judged"),
            "prices": oracle.prices_E.tolist(),
            "exchanges": [{"block": x.block, **x.figures} for x in oracle.exchanges],
        }

    def _manifest(self, silos: list[Silo]) -> RunManifest:
        """The run over these silos; a seed on public text takes its part of all steps."""
        of_seed = round(self.args.branch * self.steps / DENSE_BATCHES) * DENSE_BATCHES
        left, settings = self.steps - of_seed, list(self.args.set)
        if of_seed:
            plain = configured(self.corpus, silos, self.seed, left, [])
            folder = public_seed(plain, self._public(), of_seed, self.args.keep)
            settings.append(f"expert.init={folder}")
        return configured(self.corpus, silos, self.seed, left, settings)

    def _public(self) -> Picked:
        return unused(self.corpus, self.silos, self.args.public, self.seed)

    def _experts(self, manifest: RunManifest, models: Models, oracle: PrivateOracle) -> np.ndarray:
        """Losses of all experts, [E, 2, N]."""
        public, parts = None, {}
        if manifest.config.private.public_share:
            public = self._public()
            parts = divide_public(manifest, oracle, public)
        return np.stack(
            [
                models.expert(
                    seat, e, oracle.segments[e], float(oracle.share_E[e]), public, parts.get(e)
                )
                for seat, experts in enumerate(seat_experts(manifest.config))
                for e in experts
            ]
        )

    def _alone(self, experts_ExN: np.ndarray) -> np.ndarray:
        """Each silo's own model: its expert, or where it hosts several, one of their compute."""
        if all(silo.experts == 1 for silo in self.silos):
            return experts_ExN
        silos = [replace(silo, experts=1) for silo in self.silos]
        manifest = self._manifest(silos)
        models = Models(manifest, self.corpus, silos, self.steps, self.args.keep)
        share_K = expert_shares(seat_experts(manifest.config), [len(s.train) for s in silos])
        return np.stack(
            [
                models.expert(k, k, np.arange(len(silo.train)), float(share_K[k]))[1]
                for k, silo in enumerate(silos)
            ]
        )


def main() -> None:
    """Run splits and seeds, or show what was run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--split", choices=SPLITS, nargs="+", default=list(SPLITS))
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--fedavg-rounds", type=int, default=6)
    parser.add_argument("--keep", type=Path, default=Path("private-benchmark"))
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--public", type=int, default=0, help="sequences, of what no silo has")
    parser.add_argument("--branch", type=float, default=0.0, help="part of all steps for a seed")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=("dense", "dense_small", "fedavg", "alone"),
    )
    parser.add_argument("--tag", default="", help="goes into the names of the results")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("results", type=Path, nargs="*", help="of earlier runs, to show")
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.results]
    if args.plot is not None:
        draw(results, args.plot)
    if args.table:
        print_seeds(results)
    if results:
        return
    args.keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for split in args.split:
        for seed in args.seed:
            print_result(Study(args, split, seed).result())


if __name__ == "__main__":
    main()
