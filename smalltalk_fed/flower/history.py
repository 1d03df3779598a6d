"""What people see of a run over Flower: a line a round in `flwr log`, and Flower's own Result.

Rules: everything is read from the run's state and ledger, so a restarted ServerApp shows the
rounds before it, too; bytes are those that Flower's messages carry, as of the moment when the
round is seen to be over. `flower-history.json` in the run's folder is for other programs.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from smalltalk_fed.core.state import HardState
from smalltalk_fed.host.status import evaluation, routing_rounds, shard_figures
from smalltalk_fed.telemetry.ledger import Ledger

log = logging.getLogger("smalltalk.flower")

FILE = "flower-history.json"


class History:
    """Of one ServerApp."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._bytes: dict[int, dict[str, int]] = {}  # in all, when a round was over
        self._phase = ""

    def look(self, state: HardState) -> None:
        """Say what is new."""
        for row in _over(state):
            if row["round"] not in self._bytes:
                self._bytes[row["round"]] = totals = self._ledger.totals()
                log.info(
                    "round %d of %d: router loss %.4f, displaced %.1f %%, %d bytes up and %d down "
                    "so far",
                    row["round"],
                    state.rounds_total,
                    _mean(row["router_loss"]),
                    100 * row["displaced_fraction"],
                    _sum(totals, "up"),
                    _sum(totals, "down"),
                )
        if state.phase.value != self._phase:
            self._phase = state.phase.value
            log.info("phase %s: %s", self._phase, state.reason)

    def result(self, state: HardState) -> Result:
        """The run in Flower's form; its rounds are those of the routers."""
        result = Result()
        for row in _over(state):
            metrics: dict[str, float] = {
                "router-loss": _mean(row["router_loss"]),
                "displaced-fraction": row["displaced_fraction"],
                "excess-nats": row["excess_nats"],
            }
            if row["round"] in self._bytes:
                totals = self._bytes[row["round"]]
                metrics |= {f"bytes-{way}": float(_sum(totals, way)) for way in ("up", "down")}
            result.train_metrics_clientapp[row["round"]] = MetricRecord(metrics)
        found = evaluation(state)
        if found is not None:
            last = state.rounds_total
            ours = {k: float(found[k]) for k in ("suffix_ppl", "all_ppl") if found[k] is not None}
            result.evaluate_metrics_serverapp[last] = MetricRecord(ours)
            for expert, figures in enumerate(found["experts"]):
                kept = {f"expert-{expert}-{k}": float(v) for k, v in figures.items()}
                before = result.evaluate_metrics_clientapp.get(last, MetricRecord())
                result.evaluate_metrics_clientapp[last] = MetricRecord(dict(before) | kept)
        return result

    def save(self, state: HardState, folder: Path) -> None:
        """Write flower-history.json."""
        result = self.result(state)
        found: dict[str, Any] = {
            "run_id": state.manifest.run_id,
            "phase": state.phase.value,
            "rounds": {str(k): dict(v) for k, v in result.train_metrics_clientapp.items()},
            "shards": shard_figures(state),
            "evaluation": evaluation(state),
            "bytes": self._ledger.totals(),
            "by_kind": self._ledger.by_kind(),
        }
        (folder / FILE).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def _over(state: HardState) -> list[dict[str, Any]]:
    """The rounds that all routers are through with."""
    return [row for row in routing_rounds(state) if None not in row["router_loss"]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _sum(totals: dict[str, int], way: str) -> int:
    return sum(size for name, size in totals.items() if name.endswith(f"_{way}"))
