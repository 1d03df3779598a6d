"""What people see of a run over Flower: a line a round in `flwr log`, and Flower's own Result.

Rules: everything is read from the run's state and ledger, so a restarted ServerApp shows the
rounds before it, too; bytes are those that Flower's messages carry, as of the moment when the
round is seen to be over. `flower-history.json` in the run's folder is for other programs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from smalltalk_fed.core.silo_book import block_count, is_private
from smalltalk_fed.core.state import HardState
from smalltalk_fed.host.seat_status import price_moves
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
        for number, said in self._over(state):
            if number not in self._bytes:
                self._bytes[number] = totals = self._ledger.totals()
                up, down = _sum(totals, "up"), _sum(totals, "down")
                log.info("%s, %d bytes up and %d down so far", said, up, down)
        if state.phase.value != self._phase:
            self._phase = state.phase.value
            log.info("phase %s: %s", self._phase, state.reason)

    def result(self, state: HardState) -> Result:
        """The run in Flower's form; its rounds are the routers', or the moves of the prices."""
        result = Result()
        rounds = _moves(state) if is_private(state.manifest) else _rounds(state)
        for number, metrics in rounds.items():
            if number in self._bytes:
                totals = self._bytes[number]
                metrics |= {f"bytes-{way}": float(_sum(totals, way)) for way in ("up", "down")}
            result.train_metrics_clientapp[number] = MetricRecord(metrics)
        found = evaluation(state)
        if found is not None:
            last = max(rounds, default=0)
            ours = {k: float(found[k]) for k in ("suffix_ppl", "all_ppl") if found[k] is not None}
            result.evaluate_metrics_serverapp[last] = MetricRecord(ours)
            result.evaluate_metrics_clientapp[last] = MetricRecord(_of_evaluations(found))
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

    def _over(self, state: HardState) -> Iterator[tuple[int, str]]:
        """The rounds that are over, and what is said of each."""
        if is_private(state.manifest):
            blocks = block_count(state.manifest)
            for number, move in enumerate(price_moves(state), start=1):
                elsewhere = 100 * (move["off_diagonal"] or 0.0)
                yield (
                    number,
                    f"block {move['block']} of {blocks}, prices {move['turn'] + 1}: "
                    f"{elsewhere:.1f} % of the text would go to other silos",
                )
            return
        for number, row in _rounds(state).items():
            yield (
                number,
                f"round {number} of {state.rounds_total}: router loss {row['router-loss']:.4f}, "
                f"displaced {100 * row['displaced-fraction']:.1f} %",
            )


def _rounds(state: HardState) -> dict[int, dict[str, float]]:
    """Figures of the rounds that all routers are through with."""
    return {
        row["round"]: {
            "router-loss": sum(row["router_loss"]) / len(row["router_loss"]),
            "displaced-fraction": row["displaced_fraction"],
            "excess-nats": row["excess_nats"],
        }
        for row in routing_rounds(state)
        if None not in row["router_loss"]
    }


def _moves(state: HardState) -> dict[int, dict[str, float]]:
    """Figures of the moves of a private run's prices, 1, 2, ..."""
    names = {"off-diagonal": "off_diagonal", "share-error": "share_error"}
    return {
        number: {
            "block": float(move["block"]),
            **{name: float(move[of]) for name, of in names.items() if move[of] is not None},
        }
        for number, move in enumerate(price_moves(state), start=1)
    }


def _of_evaluations(found: dict[str, Any]) -> dict[str, float]:
    """What each expert's evaluation, or each silo's, came to; none of one that was withdrawn."""
    what = "silo" if "silos" in found else "expert"
    return {
        f"{what}-{number}-{name}": float(value)
        for number, figures in enumerate(found[f"{what}s"])
        for name, value in (figures or {}).items()
    }


def _sum(totals: dict[str, int], way: str) -> int:
    return sum(size for name, size in totals.items() if name.endswith(f"_{way}"))
