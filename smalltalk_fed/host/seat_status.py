"""What an operator sees of a private run: seats, whom it waits for, counts, prices.

The page of its health: `off_diagonal` is the part of all text that experts of other silos would
win; each seat's `away` is that of its own. Reads, never changes; names are stable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from smalltalk_fed.config.private import seat_experts
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.outputs import output
from smalltalk_fed.core.phases import WORKING, Phase
from smalltalk_fed.core.seats import free_seats, share_of, waiting_for
from smalltalk_fed.core.silo_book import block_count, due, is_private, remaining
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.mixture.silo_prices import WITHHELD, decode_counts


def private_status(coordinator: Coordinator, now: float) -> dict[str, Any]:
    """The part of the status that only a private run has; empty of another."""
    state, leases = coordinator.state, coordinator.leases
    if not is_private(state.manifest):
        return {}
    here = {
        node_id
        for node_id, presence in leases.present.items()
        if now - leases.last_there(presence, now) <= leases.lease_s and not presence.gone
    }
    step = due(state)
    return {
        "seats": seats_status(state, here),
        "free_seats": free_seats(state) if state.phase is Phase.RECRUITING else [],
        "waiting_for": waiting_for(state, here) if state.phase in WORKING else [],
        "block": step[0] if step else block_count(state.manifest),
        "blocks": block_count(state.manifest),
        "prices": price_moves(state),
    }


def seats_status(state: HardState, here: set[str]) -> list[dict[str, Any]]:
    """Each seat with its node, its experts, and what its last counts say."""
    last = state.moves[-1].figures if state.moves else {}
    rows = []
    for seat, experts in enumerate(seat_experts(state.manifest.config)):
        taken = state.seats.get(seat)
        counted, away = last.get(f"counted_{seat}", 0.0), last.get(f"away_{seat}", 0.0)
        rows.append(
            {
                "seat": seat,
                "experts": list(experts),
                "withdrawn": [expert for expert in experts if expert in state.withdrawn],
                "node_id": taken.node_id if taken else None,
                "name": state.nodes[taken.node_id].name if taken else None,
                "present": taken is not None and taken.node_id in here,
                "train_sequences": taken.train_sequences if taken else 0,
                "heldout_sequences": taken.heldout_sequences if taken else 0,
                "share": share_of(state, experts[0]),
                "counted": int(counted),
                "away": away / counted if counted else None,
            }
        )
    return rows


def price_moves(state: HardState) -> list[dict[str, Any]]:
    """Every move of the prices: step, prices, and how far the counts were from what they should be.

    `off_diagonal`: part of the text that other silos' experts would win before this move.
    """
    return [
        {
            "block": move.block,
            "turn": move.turn,
            "at": move.at,
            "prices": list(move.prices),
            "off_diagonal": move.figures.get("off_diagonal"),
            "share_error": move.figures.get("share_error"),
            "silent_seats": int(move.figures.get("silent_seats", 0)),
        }
        for move in state.moves
    ]


def count_rows(state: HardState, blobs: BlobStore) -> list[list[int | None]] | None:
    """What the silos showed last, a row a seat: held-out sequences by expert, None if withheld.

    None while nothing was counted, or if a row is damaged. A silo that has left shows nothing.
    """
    if not state.moves:
        return None
    last = state.moves[-1]
    rows: list[list[int | None]] = []
    for seat in range(len(seat_experts(state.manifest.config))):
        key = UnitKey(UnitKind.COUNT, index=last.block, seat=seat, turn=last.turn)
        if not remaining(state, seat):
            rows.append([None] * state.experts)
            continue
        try:
            data = blobs.need(output(state, key, "counts"))
            floor = state.manifest.config.private.count_floor
            row_E = decode_counts(data, state.experts, floor)
        except (SmalltalkError, ValueError):
            return None
        rows.append([None if count == WITHHELD else int(count) for count in row_E])
    return rows


def silos_evaluation(state: HardState) -> dict[str, Any] | None:
    """Perplexity over the silos' held-out text, of what could be evaluated where it is.

    `elsewhere`: sequences whose expert is in another silo and was not there to evaluate. Of a
    silo that has left there are no figures; sums that others made before it did stay.
    """
    if state.phase is not Phase.FINISHED:
        return None
    rows: list[dict[str, float]] = []
    for seat in range(len(seat_experts(state.manifest.config))):
        accepted = state.finished.get(UnitKey(UnitKind.EVALUATE_SILO, seat=seat).unit_id)
        rows.append(dict(accepted.figures) if accepted else {})
    elsewhere = sum(row.get("elsewhere", 0.0) for row in rows)
    return {**perplexities(rows), "elsewhere": int(elsewhere), "silos": rows}


def perplexities(rows: Iterable[Mapping[str, float]]) -> dict[str, float | None]:
    """Over all rows together, after the prefix and of all tokens; None of no tokens at all."""
    sums = dict.fromkeys(("suffix_nll", "suffix_tokens", "prefix_nll", "prefix_tokens"), 0.0)
    for row in rows:
        for name in sums:
            sums[name] += row.get(name, 0.0)
    nll = sums["suffix_nll"] + sums["prefix_nll"]
    return {
        "suffix_ppl": _perplexity(sums["suffix_nll"], sums["suffix_tokens"]),
        "all_ppl": _perplexity(nll, sums["suffix_tokens"] + sums["prefix_tokens"]),
    }


def _perplexity(nll: float, tokens: float) -> float | None:
    return math.exp(nll / tokens) if tokens else None
