"""Results of `private.py` as Markdown: one run's, and several seeds' with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

NAMES = {
    "mixture": "mixture",
    "alone": "own model",
    "dense": "pooled dense",
    "dense_small": "pooled dense, small batch",
    "fedavg": "FedAvg",
    "random": "random routing",
    "oracle": "oracle routing",
}
RIVALS = ("oracle", "unpriced", "fedavg", "dense", "dense_small", "alone")


def over(rows: Sequence[dict[str, Any]], by: str) -> dict[str, float]:
    """Nats a token over all silos, weighed by their `by`."""
    weights_K = np.array([row[by] for row in rows], np.float64)
    weights_K /= weights_K.sum()
    names = set.intersection(*(set(row["nats"]) for row in rows))
    return {n: float(weights_K @ np.array([row["nats"][n] for row in rows])) for n in names}


def print_result(result: dict[str, Any]) -> None:
    """One split and seed: suffix perplexity by silo, and the mixture against each rival."""
    columns = [name for name in NAMES if name in result["by_size"]]
    settings = result["settings"]
    print(f"split {settings['split']}, seed {settings['seed']}\n")
    print(_line("silo", "sequences", "at home", *(NAMES[name] for name in columns)))
    print(_rule(3 + len(columns)))
    for row in result["silos"]:
        figures = [_perplexity(row["nats"][name]) for name in columns]
        print(_line(row["silo"], f"{row['train']}", f"{row['home']:.0%}", *figures))
    for kind, what in (("by_size", "all, by size"), ("by_sequence", "all, by sequence")):
        print(_line(what, "", "", *(_perplexity(result[kind][name]) for name in columns)))
    ratios = [f"{_ratio(result, name):.3f} of {NAMES.get(name, name)}" for name in _rivals(result)]
    print("\nmixture, all text by size: " + ", ".join(ratios) + "\n", flush=True)


def print_seeds(results: Sequence[dict[str, Any]]) -> None:
    """Every split over its seeds: mean suffix perplexity (spread) on all text, and by silo."""
    splits = list(dict.fromkeys(r["settings"]["split"] for r in results))
    columns = [name for name in NAMES if all(name in r["by_size"] for r in results)]
    print(_line("split", "seeds", *(NAMES[name] for name in columns)))
    print(_rule(2 + len(columns)))
    for split in splits:
        runs = _runs(results, split)
        figures = [_spread([np.exp(r["by_size"][name]) for r in runs]) for name in columns]
        print(_line(split, _seeds(runs), *figures))
    rivals = [name for name in RIVALS if all(name in r["by_size"] for r in results)]
    print("\n" + _line("split: mixture by", *(NAMES.get(n, n) for n in rivals), "silos better"))
    print(_rule(2 + len(rivals)))
    for split in splits:
        runs = _runs(results, split)
        ratios = [
            f"{np.mean(x):.3f} ({', '.join(f'{value:.3f}' for value in x)})"
            for x in ([_ratio(r, name) for r in runs] for name in rivals)
        ]
        print(_line(split, *ratios, _better(runs)))
    for split in splits:
        runs = _runs(results, split)
        if len({tuple(row["silo"] for row in r["silos"]) for r in runs}) == 1:
            print(f"\nsplit {split}, mean of seeds {_seeds(runs)}\n")
            _print_silos(runs, columns)


def _print_silos(runs: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    print(_line("silo", "sequences", "at home", *(NAMES[name] for name in columns)))
    print(_rule(3 + len(columns)))
    for place, first in enumerate(runs[0]["silos"]):
        rows = [r["silos"][place] for r in runs]
        home = float(np.mean([row["home"] for row in rows]))
        figures = [_perplexity(np.mean([row["nats"][name] for row in rows])) for name in columns]
        print(_line(first["silo"], f"{first['train']}", f"{home:.0%}", *figures))


def _better(runs: Sequence[dict[str, Any]]) -> str:
    """On how many silos of each run the mixture is better than FedAvg."""
    found = []
    for r in runs:
        rows = r["silos"]
        if "fedavg" not in rows[0]["nats"]:
            return ""
        won = sum(row["nats"]["mixture"] < row["nats"]["fedavg"] for row in rows)
        found.append(f"{won} of {len(rows)}")
    return ", ".join(found)


def _runs(results: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    found = [r for r in results if r["settings"]["split"] == split]
    return sorted(found, key=lambda r: r["settings"]["seed"])


def _seeds(runs: Sequence[dict[str, Any]]) -> str:
    return ", ".join(str(r["settings"]["seed"]) for r in runs)


def _rivals(result: dict[str, Any]) -> list[str]:
    return [name for name in RIVALS if name in result["by_size"]]


def _ratio(result: dict[str, Any], rival: str) -> float:
    nats = result["by_size"]
    return float(np.exp(nats["mixture"] - nats[rival]))


def _spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation of single seeds where there are several."""
    mean = _perplexity(np.log(np.mean(values)))
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.2g}"


def _perplexity(nats: float) -> str:
    return f"{np.exp(nats):.3g}" if np.exp(nats) >= 100 else f"{np.exp(nats):.1f}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"
