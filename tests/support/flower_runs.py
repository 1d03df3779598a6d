"""Whole runs over Flower's two apps, and what came of a run, whatever carried it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, RecordDict
from support.flower_grid import LinkLost, ThreadGrid, node_config, server_context
from support.local_run import make_run_folder

from smalltalk_fed.core.events import PricesMoved, RoundAssigned, SegmentsMade, UnitAccepted
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import WorldError
from smalltalk_fed.flower import server_app
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal

EVALUATIONS = (UnitKind.EVALUATE, UnitKind.EVALUATE_SILO)


def what_came(folder: RunFolder) -> dict[str, Any]:
    """Digests of all that a run divided, trained and scored; evaluations' figures.

    The same for the same seed, whoever did which unit; audits are left out: what is looked at is
    the coordinator's secret.
    """
    found: dict[str, Any] = {}
    for event in events(folder):
        match event:
            case RoundAssigned():
                found[f"shares of {event.round}"] = [ref.digest for ref in event.shares]
            case SegmentsMade():
                found["segments"] = [ref.digest for ref in event.segments]
            case PricesMoved():
                found[f"prices of {event.block}/{event.turn}"] = event.prices
            case UnitAccepted():
                kind = UnitKey.parse(event.unit_id).kind
                if kind is UnitKind.AUDIT:
                    continue
                outputs = [(ref.name, ref.digest) for ref in event.outputs]
                figures = dict(event.figures) if kind in EVALUATIONS else {}
                figures.pop("tokens_per_s", None)
                found[event.unit_id] = (outputs, figures)
    return found


def events(folder: RunFolder) -> list[Any]:
    """All of a run's events."""
    journal = Journal(folder.journal, create=False)
    try:
        return list(journal.events())
    finally:
        journal.close()


@dataclass
class FlowerStage:
    """A run's folder, its nodes' folders, and one ServerApp after the other."""

    path: Path
    corpus: TokenCorpus
    changes: dict[str, dict[str, object]] = field(default_factory=dict)
    names: tuple[str, ...] = ("a", "b")
    turn_s: float = 60.0

    def __post_init__(self) -> None:
        self.folder = make_run_folder(self.path / "run", self.corpus, **self.changes)

    def node_configs(self) -> dict[int, dict[str, Any]]:
        """Node configs by Flower's id."""
        return {
            number: node_config(self.path, name, self.corpus.folder)
            for number, name in enumerate(self.names, start=101)
        }

    def play(
        self,
        fault: Callable[[int, str, int], Error | None] = lambda node, kind, number: None,
        on_grid: Callable[[ThreadGrid], None] = lambda grid: None,
        alter: Callable[[int, str, RecordDict], RecordDict] = lambda node, kind, records: records,
    ) -> ThreadGrid:
        """One ServerApp, from its start to its end; returns the messages that it sent."""
        config = {"run-dir": str(self.folder.path), "turn-s": self.turn_s}
        grid = ThreadGrid(self.node_configs(), config, fault)
        grid.alter = alter
        on_grid(grid)
        try:
            server_app.main(grid, server_context(config))
        finally:
            grid.close()
        return grid

    def play_until(self, seen: Callable[[ThreadGrid], bool]) -> ThreadGrid:
        """A ServerApp that loses its SuperLink once `seen` is true; it ends with an error."""
        grids: list[ThreadGrid] = []

        def fault(node: int, kind: str, number: int) -> None:
            if seen(grids[0]):
                raise LinkLost

        with pytest.raises(WorldError, match="SuperLink"):
            self.play(fault, on_grid=grids.append)
        return grids[0]

    def came(self) -> dict[str, Any]:
        """See `what_came`."""
        return what_came(self.folder)
