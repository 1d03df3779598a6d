"""What one training of a large model needs, whichever kind it is and whoever does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.train.experts import dense_baseline, train_expert, train_seed
from smalltalk_fed.train.lineage import FROM_THE_BEGINNING, Start

Kind = Literal["expert", "seed", "dense"]


@dataclass(frozen=True)
class TrainInputs:
    """What is trained, on what, from what.

    `expert`, `segment_ids`, `seed_parameters`, and `start` with `state` are an expert's.
    """

    kind: Kind
    manifest: RunManifest
    corpus: TokenCorpus
    work_folder: Path
    expert: int = 0
    segment_ids: np.ndarray | None = None
    seed_parameters: Path | None = None
    start: Start = FROM_THE_BEGINNING
    state: Path | None = None

    def train(self, *, on_state: Any = None, **how: Any) -> tuple[Path, dict[str, float]]:
        """Train it in this process; `how` are the keywords of `experts`' functions."""
        if self.kind == "seed":
            return train_seed(self.manifest, self.corpus, self.work_folder, **how)
        if self.kind == "dense":
            return dense_baseline(self.manifest, self.corpus, self.work_folder, **how)
        if self.segment_ids is None:
            raise ValueError("an expert can't be trained without its segment")
        return train_expert(
            self.manifest,
            self.corpus,
            self.expert,
            self.segment_ids,
            self.seed_parameters,
            self.work_folder,
            start=self.start,
            state=self.state,
            on_state=on_state,
            **how,
        )
