"""Finished rounds of a silo's block on disk, so that a block that was cut off goes on there.

Rules: they are filed under the digest of what the block began with, so that rounds of another
block, of other routers, or with an expert that has left are never taken for its own; what can't
be read is done again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from smalltalk_fed.model.state import state_from_bytes, state_to_bytes, write_atomically

log = logging.getLogger(__name__)


class KeptRounds:
    """Finished rounds of a block on disk, filed under the digest of what it began with."""

    def __init__(
        self,
        work_folder: Path,
        seat: int,
        block: int,
        experts: Collection[int],
        routers: Mapping[int, bytes],
    ) -> None:
        digest = hashlib.sha256(f"{seat}/{block}/{sorted(experts)}".encode())
        for expert in sorted(routers):
            digest.update(hashlib.sha256(routers[expert]).digest())
        self.folder = work_folder / f"block-{digest.hexdigest()[:16]}"

    def _files(self) -> list[Path]:
        """Newest first; a round's number stands in the name."""
        return sorted(self.folder.glob("round-*.safetensors"), reverse=True)

    def keep(self, round_: int, models: Mapping[int, nn.Module]) -> None:
        """Write the routers as they are after `round_`, all in one file, and drop older ones."""
        states = {str(e): np.frombuffer(state_to_bytes(m), np.uint8) for e, m in models.items()}
        older = self._files()
        file = self.folder / f"round-{round_:09d}.safetensors"
        write_atomically(file, lambda path: save_file(states, path))
        for path in older:
            path.unlink(missing_ok=True)

    def restore(self, models: Mapping[int, nn.Module]) -> int:
        """Load the routers as they were after the newest round; returns its number, or 0."""
        for file in self._files():
            try:
                states = load_file(file)
                for expert, model in models.items():
                    state_from_bytes(model, states[str(expert)].tobytes())
            except (OSError, SafetensorError, KeyError) as error:
                log.warning("%s can't be read (%s); its rounds are done again", file, error)
                continue
            return int(file.stem.rpartition("-")[2])
        return 0
