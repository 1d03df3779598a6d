"""A unit's inputs: how large each may be, and what is in it.

Rules: sizes are checked against the manifest before anything is fetched, contents when they
are read; what can't be used is named with its unit. Large weights stay files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.model_config import CONFIG_BYTES_MAX
from smalltalk_fed.core.units import Unit
from smalltalk_fed.errors import Malformed, TooLarge
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids


def input_limit(manifest: RunManifest, name: str) -> int:
    """Largest input of this name in bytes, as the manifest implies; 0 for names that none has."""
    chunk = manifest.config.router.chunk_sequences
    match name:
        case "share":
            return 64 + 8 * chunk
        case "segment":
            return 64 + 8 * manifest.train_sequences
        case "routed":
            return 64 + 2 * manifest.heldout_sequences
        case "config":
            return CONFIG_BYTES_MAX
        case "weights" | "seed" | "state":
            return manifest.expert_blob_bytes_max
        case _ if name.startswith("weights-"):
            return manifest.expert_blob_bytes_max
        case _ if name in ("parameters", "before") or name.startswith("router-"):
            return manifest.router_blob_bytes_max
        case _:
            return 0


def check_inputs(manifest: RunManifest, unit: Unit) -> None:
    """Refuse a unit whose inputs are larger than the manifest implies, before any is fetched.

    Raises:
        TooLarge: and which it is.
    """
    for ref in unit.inputs:
        limit = input_limit(manifest, ref.name)
        if ref.size > limit:
            raise TooLarge(
                f"input '{ref.name}' of {unit.unit_id} has {ref.size} bytes; the run's manifest "
                f"allows {limit}"
            )


@dataclass(frozen=True)
class UnitInputs:
    """The files of a unit's inputs by name, and what they hold.

    Every function that reads raises Malformed for an input that is missing or can't be used.
    """

    manifest: RunManifest
    unit: Unit
    files: dict[str, Path]

    def file(self, name: str) -> Path:
        """Where an input lies that the unit can't do without."""
        path = self.files.get(name)
        if path is None:
            raise Malformed(f"{self.unit.unit_id} came without its input '{name}'")
        return path

    def data(self, name: str) -> bytes:
        """A small input's bytes."""
        return self.file(name).read_bytes()

    def data_if_any(self, name: str) -> bytes | None:
        """A small input's bytes; None if the unit came without it."""
        path = self.files.get(name)
        return path.read_bytes() if path else None

    def ids(self, name: str) -> np.ndarray:
        """An id list of training sequences, int64[n]."""
        data, limit = self.data(name), self.manifest.train_sequences
        return self._decoded(name, lambda: decode_ids(data, limit))

    def experts(self, name: str) -> np.ndarray:
        """The expert of each held-out sequence, int32[n]."""
        data, count = self.data(name), self.manifest.heldout_sequences
        return self._decoded(name, lambda: decode_experts(data, count, self.manifest.experts))

    def routers(self) -> list[bytes]:
        """The parameters of all routers, by expert."""
        return [self.data(f"router-{expert}") for expert in range(self.manifest.experts)]

    def routers_left(self) -> list[bytes | None]:
        """The same, with None for each expert that the unit is done without."""
        gone = self.unit.withdrawn
        return [
            None if expert in gone else self.data(f"router-{expert}")
            for expert in range(self.manifest.experts)
        ]

    def _decoded(self, name: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return decode()
        except ValueError as error:
            raise Malformed(f"input '{name}' of {self.unit.unit_id}: {error}") from None
