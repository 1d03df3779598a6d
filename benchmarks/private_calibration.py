"""Ways to make routers of unequal silos comparable, on the matrices that `private.py` left.

    python benchmarks/private_calibration.py FOLDER/matrices-own-?.npz [...] [--floor 10]

Every way gives a price for each expert, from what may leave silos: counts, or sums over many
sequences. All of them see counted text only, and the mixture is judged on the rest: where a silo
counts over all of its held-out text, on every other sequence of it. Prints the suffix perplexity
of the mixture against oracle routing (each sequence to the expert with the lowest true loss),
over all text by size and by sequence, the worst silo's, and the part of the text that stays in
its silo; the mean of all files, and the first figure of each. `labels` and `best prices` look at
what no run can see: the silo that a text is from, and the true losses of the counted text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from smalltalk_fed.mixture.assignment import route
from smalltalk_fed.mixture.silo_prices import expert_shares, move_prices, withhold

LIFTS = (0.5, 1.0, 1.5, 2.0)  # parts of the lift that are tried


class World:
    """The matrices of one split and seed."""

    def __init__(self, file: Path, floor: int) -> None:
        kept = np.load(file)
        self.floor = floor
        self.scores_NxE = kept["scores_NxE"].astype(np.float64)
        self.losses_Ex2xN = kept["losses_Ex2xN"]
        self.tokens = int(kept["suffix_tokens"])
        self.train_K = kept["train_K"]
        ends = accumulate(kept["experts_of"].tolist(), initial=0)
        self.seats = [range(*pair) for pair in pairwise(ends)]
        self.counted, self.judged = [], []
        for k in range(len(self.seats)):
            counted, judged = kept[f"counted_{k}"], kept[f"judged_{k}"]
            if len(judged) < 1.5 * len(counted):
                counted = counted[::2]
            self.counted.append(counted)
            self.judged.append(np.setdiff1d(judged, counted))
        self.run_prices_E = kept["prices_E"]
        self.experts = self.scores_NxE.shape[1]

    # ------------------------------------------------------------------ ways to make prices

    def none(self) -> np.ndarray:
        return np.zeros(self.experts)

    def of_the_run(self) -> np.ndarray:
        return self.run_prices_E

    def ascent(self, step: float, rounds: int, floor: int, decay: float = 0.0) -> np.ndarray:
        """Dual ascent on withheld counts; the step falls as 1 / (1 + decay * round)."""
        prices_E = np.zeros(self.experts)
        for index in range(rounds):
            rows = [
                withhold(
                    np.bincount(route(self.scores_NxE[ids], prices_E), minlength=self.experts),
                    floor,
                )
                for ids in self.counted
            ]
            prices_E, _ = move_prices(
                prices_E, np.stack(rows), self.seats, self.train_K, step / (1 + decay * index)
            )
        return prices_E

    def relative(self, step: float, rounds: int, floor: int, decay: float = 0.0) -> np.ndarray:
        """Errors relative to an expert's own share, so that small silos' prices move as fast."""
        prices_E = np.zeros(self.experts)
        share_E = expert_shares(self.seats, self.train_K)
        for index in range(rounds):
            rows = [
                withhold(
                    np.bincount(route(self.scores_NxE[ids], prices_E), minlength=self.experts),
                    floor,
                )
                for ids in self.counted
            ]
            moved_E, _ = move_prices(prices_E, np.stack(rows), self.seats, self.train_K, 1.0)
            error_E = np.clip((moved_E - prices_E) / share_E, -1, 1)
            prices_E = prices_E + step / (1 + decay * index) * error_E
        return prices_E

    def own_of(self, expert: int) -> np.ndarray:
        """Ids that are counted over where `expert` is at home, and that it wins among its own."""
        for seat, experts in enumerate(self.seats):
            if expert in experts:
                ids = self.counted[seat]
                best = self.scores_NxE[np.ix_(ids, list(experts))].argmax(axis=1)
                return ids[best == expert - experts[0]]
        raise AssertionError(expert)

    def own_mean(self) -> np.ndarray:
        """Every router's mean score of its own held-out text becomes the same."""
        return np.array([self.scores_NxE[self.own_of(e), e].mean() for e in range(self.experts)])

    def own_lift(self) -> np.ndarray:
        """Own text: mean score of the router less mean prefix likelihood of the expert."""
        return np.array(
            [
                (self.scores_NxE[ids, e] + self.losses_Ex2xN[e, 0, ids]).mean()
                for e in range(self.experts)
                for ids in [self.own_of(e)]
            ]
        )

    def best(self) -> np.ndarray:
        """Prices by coordinate descent on the true losses; no run can do this."""
        losses_NxE, weight_N = self.losses_Ex2xN[:, 1].T, self.weights(self.counted)
        prices_E = self.none()
        every = np.arange(len(losses_NxE))
        for width in (16.0, 8.0, 4.0, 2.0, 1.0, 0.5):
            for _ in range(3):
                for e in range(self.experts):
                    tried = prices_E[e] + width * np.arange(-4, 5)
                    costs = []
                    for price in tried:
                        prices_E[e] = price
                        costs.append(weight_N @ losses_NxE[every, route(self.scores_NxE, prices_E)])
                    prices_E[e] = tried[int(np.argmin(costs))]
        return prices_E

    # ------------------------------------------------------------------ what comes of them

    def weights(self, ids_K: list[np.ndarray]) -> np.ndarray:
        """Weight of each sequence, by the size of the silos whose text it is."""
        weight_N = np.zeros(len(self.scores_NxE))
        for ids, size in zip(ids_K, self.train_K / self.train_K.sum(), strict=True):
            weight_N[ids] += size / len(ids)
        return weight_N

    def outcome(self, winner_N: np.ndarray) -> dict[str, float]:
        losses_NxE = self.losses_Ex2xN[:, 1].T
        mine_N = losses_NxE[np.arange(len(winner_N)), winner_N]
        excess_N = (mine_N - losses_NxE.min(axis=1)) / self.tokens
        judged = np.concatenate(self.judged)
        home = [
            np.isin(winner_N[ids], list(experts)).mean()
            for ids, experts in zip(self.judged, self.seats, strict=True)
        ]
        return {
            "by_size": float(np.exp(self.weights(self.judged) @ excess_N)),
            "by_sequence": float(np.exp(excess_N[judged].mean())),
            "worst_silo": float(max(np.exp(excess_N[ids].mean()) for ids in self.judged)),
            "home": float((self.train_K / self.train_K.sum()) @ np.array(home)),
        }

    def labelled(self) -> np.ndarray:
        winner_N = np.zeros(len(self.scores_NxE), np.int64)
        for ids, experts in zip(self.judged, self.seats, strict=True):
            best = self.scores_NxE[np.ix_(ids, list(experts))].argmax(axis=1)
            winner_N[ids] = experts[0] + best
        return winner_N


def ways(world: World) -> dict[str, Callable[[], np.ndarray]]:
    """Name and prices of every way."""
    found: dict[str, Callable[[], np.ndarray]] = {
        "nothing (all zero)": world.none,
        "the run's (its counts saw all)": world.of_the_run,
    }
    for step in (5.0, 20.0, 80.0):
        found[f"ascent {step:g} x 14"] = lambda s=step: world.ascent(s, 14, world.floor)
    found["ascent 20 x 100, falling, no floor"] = lambda: world.ascent(20.0, 100, 1, 0.05)
    found["relative 4 x 14, falling"] = lambda: world.relative(4.0, 14, world.floor, 0.3)
    found["own mean"] = world.own_mean
    for part in LIFTS:
        found[f"lift x {part:g}"] = lambda p=part: p * world.own_lift()
    found["best prices"] = world.best
    return found


def outcomes(file: Path, floor: int) -> dict[str, dict[str, float]]:
    """What comes of every way on one file."""
    world = World(file, floor)
    found = {
        name: world.outcome(route(world.scores_NxE, make())) for name, make in ways(world).items()
    }
    return found | {"labels": world.outcome(world.labelled())}


def main() -> None:
    """Print one table of all files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--floor", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    every = {file.stem: outcomes(file, args.floor) for file in args.files}
    if args.json:
        print(json.dumps(every))
        return
    print("| " + ", ".join(every) + " | by size | by sequence | worst silo | at home |")
    print("|---|---|---|---|---|")
    for name in next(iter(every.values())):
        rows = [found[name] for found in every.values()]
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        single = ", ".join(f"{row['by_size']:.3f}" for row in rows)
        print(
            f"| {name} | {mean['by_size']:.3f} ({single}) | {mean['by_sequence']:.3f} | "
            f"{mean['worst_silo']:.3f} | {mean['home']:.1%} |"
        )


if __name__ == "__main__":
    main()
