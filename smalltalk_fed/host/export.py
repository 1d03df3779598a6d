"""Which sequence went to which expert, round by round, for reports and checks.

`round_001_ids` and `round_001_experts` (int64 and int16, one entry a sequence of the chunk,
in the order of expert and position), and so on; `segment_ids`, `segment_experts` for the
sharding of the corpus; `heldout_experts` for held-out text, by id.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smalltalk_fed.core.events import RoundAssigned
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import HELDOUT, BlobRef, UnitKey, UnitKind
from smalltalk_fed.errors import UserError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids


def export_assignments(folder: RunFolder, out: Path) -> int:
    """Write all assignments of a run to `out` (.npz); returns the number of rounds.

    Raises:
        UserError: nothing is assigned yet.
    """
    journal = Journal(folder.journal, create=False)
    try:
        state, rounds = HardState(folder.manifest), dict[int, RoundAssigned]()
        for event in journal.events():
            state.apply(event)
            if isinstance(event, RoundAssigned):
                rounds[event.round] = event  # the state forgets old ones
    finally:
        journal.close()
    if not rounds:
        raise UserError(f"{folder.path} has no assignments yet; the run has not begun.")
    arrays = assignments(state, rounds, BlobStore(folder.blobs))
    with out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return len(rounds)


def assignments(
    state: HardState, rounds: Mapping[int, RoundAssigned], blobs: BlobStore
) -> dict[str, np.ndarray]:
    """The arrays described above."""
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, lists: tuple[BlobRef, ...]) -> None:
        ids = [decode_ids(blobs.get(ref.digest)) for ref in lists]
        arrays[f"{name}_ids"] = np.concatenate(ids)
        lengths = [len(part) for part in ids]
        arrays[f"{name}_experts"] = np.repeat(np.arange(len(ids), dtype=np.int16), lengths)

    for number, assigned in sorted(rounds.items()):
        add(f"round_{number:03d}", assigned.shares)
    if state.segments:
        add("segment", state.segments.segments)
    heldout = state.finished.get(UnitKey(UnitKind.SHARD, index=HELDOUT).unit_id)
    if heldout:
        count = state.manifest.heldout_sequences
        data = blobs.get(heldout.outputs[0].digest)
        arrays["heldout_experts"] = decode_experts(data, count, state.experts).astype(np.int16)
    return arrays
