"""The picture of `private.py`'s results: how far each contender is from oracle routing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

SHOWN = {
    "mixture": ("mixture", "#1b6ca8"),
    "alone": ("each silo's own model on its own text", "#27ae60"),
    "dense": ("one dense model on pooled text (what privacy forbids)", "#7f8c8d"),
    "dense_small": ("the same, by batches of one expert's size", "#c5cbcc"),
    "fedavg": ("federated averaging of one dense model", "#c0392b"),
}
TITLES = {
    "own": "one domain a silo",
    "two": "two domains and two experts a silo",
    "two-one": "two domains and one expert a silo",
    "spread": "one domain over two silos",
    "sizes": "sizes from 1 to 20",
}


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """One panel a split; a group of bars a silo, and the last for all text.

    Bars are means over seeds, lines go from the lowest to the highest seed.
    """
    splits = [split for split in TITLES if any(r["settings"]["split"] == split for r in results)]
    shown = [name for name in SHOWN if any(name in r["by_size"] for r in results)]
    figure, axes = plt.subplots(len(splits), 1, figsize=(10, 2.5 * len(splits)), squeeze=False)
    for ax, split in zip(axes[:, 0], splits, strict=True):
        runs = [r for r in results if r["settings"]["split"] == split]
        _panel(ax, runs, [name for name in shown if all(name in r["by_size"] for r in runs)])
        seeds = ", ".join(str(r["settings"]["seed"]) for r in runs)
        ax.set_title(f"{TITLES[split]} (seeds {seeds})", loc="left", fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=SHOWN[name][1]) for name in shown]
    labels = [SHOWN[name][0] for name in shown]
    figure.legend(handles, labels, fontsize=8, ncols=2, frameon=False, loc="upper center")
    figure.supylabel("suffix perplexity, by that of oracle routing", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.7 / (2.5 * len(splits))))
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _panel(ax: Any, runs: list[dict[str, Any]], shown: list[str]) -> None:
    same = len({tuple(row["silo"] for row in r["silos"]) for r in runs}) == 1
    silos = runs[0]["silos"]
    names = [row["silo"] if same else f"silo {i + 1}" for i, row in enumerate(silos)]
    labels = [f"{n}\n{row['train']:,}" if same else n for n, row in zip(names, silos, strict=True)]
    places = np.arange(len(names) + 1)
    for index, name in enumerate(shown):
        ratios_RxK = np.array(
            [
                [np.exp(row["nats"][name] - row["nats"]["oracle"]) for row in r["silos"]]
                + [np.exp(r["by_size"][name] - r["by_size"]["oracle"])]
                for r in runs
            ]
        )
        mean_K = ratios_RxK.mean(axis=0)
        reach = [mean_K - ratios_RxK.min(axis=0), ratios_RxK.max(axis=0) - mean_K]
        x = places + (index - (len(shown) - 1) / 2) * (0.84 / len(shown))
        ax.bar(
            x, mean_K - 1, 0.8 / len(shown), bottom=1, yerr=reach, color=SHOWN[name][1],
            error_kw={"lw": 0.7, "ecolor": "black"},
        )  # fmt: skip
    ax.set_xticks(places, [*labels, "all text"], fontsize=7)
    ax.axhline(1.0, color="black", lw=0.8)
    ax.set_yscale("log")
    ticks = [0.7, 1, 1.5, 2, 3, 4, 6]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.minorticks_off()
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
