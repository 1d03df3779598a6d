"""The picture of `private.py`'s results: how far each contender is from oracle routing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

SHOWN = {
    "mixture": ("mixture", "#1b6ca8"),
    "dense": ("dense on pooled text (what privacy forbids)", "#7f8c8d"),
    "fedavg": ("federated averaging of one dense model", "#c0392b"),
    "alone": ("each silo's own model on its own text", "#27ae60"),
}
TITLES = {
    "own": "one domain a silo",
    "two": "two domains and two experts a silo",
    "two-one": "two domains and one expert a silo",
    "spread": "one domain over two silos",
    "sizes": "sizes from 1 to 20",
}


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """One panel a split; a group of bars a silo, and the last for all text; seeds averaged."""
    splits = [split for split in TITLES if any(r["split"] == split for r in results)]
    figure, axes = plt.subplots(len(splits), 1, figsize=(10, 2.6 * len(splits)), squeeze=False)
    for ax, split in zip(axes[:, 0], splits, strict=True):
        runs = [r for r in results if r["split"] == split]
        _panel(ax, runs)
        seeds = ", ".join(str(r["seed"]) for r in runs)
        ax.set_title(f"{TITLES[split]} (seeds {seeds})", loc="left", fontsize=10)
    axes[0, 0].legend(fontsize=8, ncols=2, frameon=False)
    figure.supylabel("suffix perplexity, by that of oracle routing", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _panel(ax: Any, runs: list[dict[str, Any]]) -> None:
    same = len({tuple(row["silo"] for row in r["silos"]) for r in runs}) == 1
    silos = runs[0]["silos"]
    names = [row["silo"] if same else f"silo {i + 1}" for i, row in enumerate(silos)]
    labels = [f"{n}\n{row['train']:,}" if same else n for n, row in zip(names, silos, strict=True)]
    places = np.arange(len(names) + 1)
    for index, (name, (label, colour)) in enumerate(SHOWN.items()):
        by_run = [
            [np.exp(row["nats"][name] - row["nats"]["oracle"]) for row in r["silos"]]
            + [np.exp(r["by_size"][name] - r["by_size"]["oracle"])]
            for r in runs
        ]
        offset = (index - (len(SHOWN) - 1) / 2) * 0.2
        ax.bar(places + offset, np.mean(by_run, axis=0), 0.18, label=label, color=colour)
    ax.set_xticks(places, [*labels, "all text"], fontsize=7)
    ax.axhline(1.0, color="black", lw=0.8)
    ax.axhline(1.03, color="black", lw=0.5, ls=":")
    ax.set_ylim(bottom=0.9)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
