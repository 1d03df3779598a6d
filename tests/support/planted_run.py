"""A copy of a finished run, to plant something wrong in, and the audit's verdict over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from support.tiny_units import signed_result

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import handout
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, UnitKey
from smalltalk_fed.host.audit import AuditReport, audit
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.idlists import decode_ids, encode_ids
from smalltalk_fed.wire.signing import SigningKey

ROUNDS = 4  # of 40 sequences out of 96: the third begins a second pass
E = TypeVar("E", bound=ev.Event)


@dataclass
class Planted:
    """A copy of a finished run, to be changed."""

    folder: RunFolder
    keys: dict[str, SigningKey]
    corpus: Path

    def __post_init__(self) -> None:
        journal = Journal(self.folder.journal)
        self.events: list[Any] = list(journal.events())
        journal.close()
        self.blobs = BlobStore(self.folder.blobs)

    def find(self, kind: type[E], **fields: object) -> tuple[int, E]:
        """Place and event of the first that has these fields."""
        for place, event in enumerate(self.events):
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items()):
                return place, event
        raise AssertionError(f"no {kind.__name__} with {fields}")

    def change(self, place: int, **fields: object) -> None:
        """Give an event other fields."""
        self.events[place] = replace(self.events[place], **fields)

    def ids(self, ref: BlobRef) -> np.ndarray:
        """An id list's ids."""
        return decode_ids(self.blobs.get(ref.digest))

    def put_ids(self, name: str, ids: np.ndarray) -> BlobRef:
        """Store an id list."""
        return self.blobs.put(name, encode_ids(ids))

    def with_share(self, round_: int, expert: int, change: Callable[[np.ndarray], Any]) -> None:
        """Change one share of a round."""
        place, event = self.find(ev.RoundAssigned, round=round_)
        shares = list(event.shares)
        shares[expert] = self.put_ids("share", change(self.ids(shares[expert])))
        self.change(place, shares=tuple(shares))

    def with_segment(self, expert: int, change: Callable[[np.ndarray], Any]) -> None:
        """Change one segment, and what is said of its length."""
        place, event = self.find(ev.SegmentsMade)
        segments = list(event.segments)
        ids = change(self.ids(segments[expert]))
        segments[expert] = self.put_ids("segment", ids)
        figures = event.figures | {f"load_{expert}": float(len(ids))}
        self.change(place, segments=tuple(segments), figures=figures)

    def sign(self, place: int) -> None:
        """Let the node of a result sign it as it is now."""
        event, state = self.events[place], HardState(self.folder.manifest)
        for before in self.events[:place]:
            state.apply(before)
        unit = handout.unit(
            state, UnitKey.parse(event.unit_id), int(event.figures.get("from_step", 0))
        )
        result = signed_result(
            self.keys[event.node_id],
            self.folder.manifest.run_id,
            event.node_id,
            unit,
            event.outputs,
            event.figures,
            event.incarnation,
        )
        self.change(place, signature=result.signature.hex())

    def collect(self, before: int, step: int, from_step: int, node_id: str) -> None:
        """Insert the collected weights of expert 0 before an event."""
        weights = self.blobs.put("weights", f"expert 0 at {step}".encode())
        figures = {"step": float(step), "from_step": float(from_step)}
        event = ev.WeightsCollected(
            1.0, "train_expert/0", node_id, 1, step, from_step, (weights,), figures, ""
        )
        self.events.insert(before, event)
        self.sign(before)

    def audit(self) -> AuditReport:
        """The verdict over the journal as it is now."""
        for path in self.folder.path.glob("journal.sqlite*"):
            path.unlink()
        journal = Journal(self.folder.journal)
        journal.append(self.events)
        journal.close()
        return audit(self.folder)


def says(report: AuditReport, check: str, what: str) -> bool:
    """Whether a finding of this check says so."""
    return any(f.check == check and what in f"{f.where}: {f.what}" for f in report.findings)
