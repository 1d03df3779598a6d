"""What an operator and the report see of a run: one JSON object from state and leases.

Reads, never changes. Names are stable: `--json` users lean on them.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.state import HardState, all_rounds
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.host.audit_status import audit_status, node_audits
from smalltalk_fed.host.seat_status import perplexities, private_status, silos_evaluation


def run_status(coordinator: Coordinator, now: float) -> dict[str, Any]:
    """The run as plain data; times are Unix seconds, durations seconds."""
    state, leases = coordinator.state, coordinator.leases
    units = list(state.phase_units())
    finished = sum(1 for key in units if state.is_finished(key))
    leased = sum(1 for key in units if key in leases.by_unit)
    looked_at = Counter(state.audits[unit_id].node_id for unit_id in state.unsettled)
    return {
        "run_id": state.manifest.run_id,
        "name": state.manifest.config.run.name,
        "seed": state.manifest.config.run.seed,
        "phase": state.phase.value,
        "reason": state.reason,
        "paused_from": state.paused_from.value if state.paused_from else None,
        "experts": state.experts,
        "round": state.round,
        "rounds": state.rounds_total,
        "units": {"open": len(units) - finished - leased, "leased": leased, "finished": finished},
        "audits": audit_status(state),
        "nodes": [_node(coordinator, node_id, now, looked_at) for node_id in state.nodes],
        "invites": [
            {
                "id": invite.secret_sha256[:8],
                "name": invite.name,
                "uses": invite.uses,
                "used": len(invite.used_by),
                "uses_left": invite.uses - len(invite.used_by),
                "used_by": list(invite.used_by),
                "expires_at": invite.expires_at,
                "expired": invite.expires_at <= now,
                "cancelled": invite.cancelled,
            }
            for invite in state.invites.values()
        ],
        "phase_started": dict(state.entered_at),
        "now": now,
        "routing": routing_rounds(state),
        "shards": shard_figures(state),
        "experts_done": experts_done(state),
        "evaluation": evaluation(state),
        **private_status(coordinator, now),
        "withdrawn": [
            {"at": e.at, "expert": e.expert, "node_id": e.node_id, "by": e.by, "reason": e.reason}
            for _, e in sorted(state.withdrawn.items())
        ],
        "failures": {
            key.unit_id: [{"node_id": node, "reason": reason} for node, reason in failures]
            for key, failures in leases.failures.items()
        },
    }


def process_cost(worker_cpu_s: float) -> dict[str, float]:
    """CPU seconds and peak memory of this process, and its worker's CPU seconds."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": own.ru_utime + own.ru_stime,
        "workers_cpu_s": worker_cpu_s,
        "rss_peak_mb": _peak_bytes() / 1e6,
        "uptime_s": time.clock_gettime(time.CLOCK_MONOTONIC) - _STARTED_S,
    }


def _peak_bytes() -> int:
    """Peak memory; Linux's getrusage would count what our parent had when it started us."""
    try:
        said = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 1024 * int(said.partition("VmHWM:")[2].split()[0])


_STARTED_S = time.clock_gettime(time.CLOCK_MONOTONIC)


def _node(
    coordinator: Coordinator, node_id: str, now: float, looked_at: Counter[str]
) -> dict[str, Any]:
    node = coordinator.state.nodes[node_id]
    presence = coordinator.leases.present.get(node_id)
    lease = coordinator.leases.by_node.get(node_id)
    seen_s_ago = None if presence is None else now - presence.seen
    if node_id in coordinator.leases.waiting:
        seen_s_ago = 0.0
    silent = seen_s_ago is None or seen_s_ago > coordinator.leases.lease_s
    return {
        "node_id": node_id,
        "name": node.name,
        "revoked": node.revoked or None,
        "two_places": coordinator.doubles.seen_at.get(node_id),
        "quarantined": node.quarantined or None,
        "doubted": node.doubted or None,
        "audits": node_audits(node, looked_at[node_id]),
        "present": bool(presence and not presence.gone and not silent),
        "seen_s_ago": seen_s_ago,
        "device": presence.capabilities.device if presence else "",
        "corpus_bytes": presence.capabilities.corpus_bytes if presence else 0,
        "unit": lease.key.unit_id if lease else None,
        "fraction": lease.fraction if lease else 0.0,
        "since": lease.since if lease else None,
        "copy": lease.copy if lease else False,
        "figures": dict(lease.figures) if lease else {},
    }


def routing_rounds(state: HardState) -> list[dict[str, Any]]:
    """Per round: loads, displaced fraction, excess nats, the routers' losses."""
    return [
        {
            "round": number,
            "at": past.at,
            "load": [int(past.figures[f"load_{e}"]) for e in range(state.experts)],
            "displaced_fraction": past.figures["displaced_fraction"],
            "excess_nats": past.figures["excess_nats"],
            "router_loss": list(past.losses),
            "nodes": list(past.nodes),
            "seconds": list(past.seconds),
        }
        for number, past in sorted(all_rounds(state).items())
    ]


def shard_figures(state: HardState) -> dict[str, float]:
    """Displaced fraction and excess nats of the sharding, weighted by slice."""
    total, sums = 0, {"displaced_fraction": 0.0, "excess_nats": 0.0}
    for index in range(state.manifest.shard_count):
        accepted = state.finished.get(UnitKey(UnitKind.SHARD, index=index).unit_id)
        if accepted is None:
            continue
        start, stop = state.manifest.shard_range(index)
        total += stop - start
        for name in sums:
            sums[name] += (stop - start) * accepted.figures.get(name, 0.0)
    return {name: value / total for name, value in sums.items()} if total else {}


def experts_done(state: HardState) -> list[dict[str, Any]]:
    """Every trained expert with its node and figures."""
    rows = []
    for expert in range(state.experts):
        accepted = state.finished.get(UnitKey(UnitKind.TRAIN_EXPERT, expert).unit_id)
        if accepted is not None:
            segment = state.segments.segments[expert] if state.segments else None
            rows.append(
                {
                    "expert": expert,
                    "node_id": accepted.node_id,
                    "at": accepted.at,
                    "lease_seconds": accepted.seconds,
                    "segment_digest": segment.digest if segment else None,
                    "sequences": int(state.segments.figures[f"load_{expert}"])
                    if state.segments
                    else 0,
                    **accepted.figures,
                }
            )
    return rows


def evaluation(state: HardState) -> dict[str, Any] | None:
    """The mixture's held-out perplexity out of the `evaluate` units, once all are in.

    Of an expert that was withdrawn there are no figures (None), and the text that the routers
    gave it is in no sum.
    """
    if is_private(state.manifest):
        return silos_evaluation(state)
    if state.phase is not Phase.FINISHED or not state.manifest.heldout_sequences:
        return None
    found = [
        state.finished.get(UnitKey(UnitKind.EVALUATE, expert).unit_id)
        for expert in range(state.experts)
    ]
    rows = [accepted.figures for accepted in found if accepted]
    experts = [dict(accepted.figures) if accepted else None for accepted in found]
    return {**perplexities(rows), "experts": experts}
