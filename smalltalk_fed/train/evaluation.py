"""The unit that judges a finished expert on held-out text.

What comes out are sums, so that experts' figures add up to the mixture's. The rules of
`units` hold here too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.model.state import state_from
from smalltalk_fed.train.device import use_threads
from smalltalk_fed.train.experts import build_expert
from smalltalk_fed.train.scoring import sequence_losses
from smalltalk_fed.train.units import OnProgress, ShouldStop


def evaluate_expert(
    manifest: RunManifest,
    corpus: TokenCorpus,
    weights: bytes | Path,
    heldout_ids: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[str, float]:
    """Return summed losses (nats) and token counts on held-out sequences.

    `prefix_nll` is of tokens 2..M, `suffix_nll` of tokens M+1..S, over all of `heldout_ids`.
    """
    config = manifest.config
    use_threads(config.compute)
    model = build_expert(manifest, "expert")
    state_from(model, weights)
    prefix_N, suffix_N = sequence_losses(
        model,
        corpus.heldout,
        np.sort(heldout_ids),
        config.sequence.prefix,
        batch_sequences=config.compute.score_batch,
        dtype=config.compute.score_dtype,
        device=device,
        on_progress=None if on_progress is None else lambda done: on_progress(done, {}),
        should_stop=should_stop,
    )
    count = len(heldout_ids)
    return {
        "sequences": float(count),
        "prefix_nll": float(prefix_N.sum()),
        "suffix_nll": float(suffix_N.sum()),
        "prefix_tokens": float(count * (config.sequence.prefix - 1)),
        "suffix_tokens": float(count * (config.sequence.length - config.sequence.prefix)),
    }
