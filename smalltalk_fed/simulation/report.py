"""What a simulated run came to: figures for `--json`, and their words for the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from smalltalk_fed.core.events import from_json
from smalltalk_fed.simulation.audit_figures import AuditFigures, audit_figures
from smalltalk_fed.simulation.rules import Violation
from smalltalk_fed.simulation.world import DAY_S, START_S

if TYPE_CHECKING:
    from smalltalk_fed.simulation.ideal import Ideal
    from smalltalk_fed.simulation.simulate import Simulation


@dataclass(frozen=True)
class Report:
    """Figures of one run; rates a second are of virtual seconds."""

    policy: str
    seed: int
    nodes: int
    experts: int
    finished: bool
    phase: str
    violations: tuple[str, ...]
    broken_rule: str  # of the first violation, or empty
    trace_digest: str
    virtual_days: float
    ideal_days: float | None  # None: not even the ideal would have finished
    wall_s: float
    cpu_s: float  # of this process; what a busy machine does not change
    events: int
    work_days: float  # of the reference machine, all units once
    busy_share: float  # of the machine-hours that were on: computing or transferring
    useful_share: float  # of the work computed: accepted
    repeated_work: float  # computed more than once or for nothing, as a share of what counts
    messages: int
    messages_per_s_mean: float
    messages_per_s_peak: float
    bytes_per_s_mean: float
    bytes_per_s_peak: float
    blob_up_bytes: int
    blob_down_bytes: int
    journal_bytes: int
    journal_events: int
    commits: int
    coordinator_restarts: int
    node_starts: int
    lease_age_mean_s: float  # since the holder was last heard of
    lease_age_p99_s: float
    stale_leases: float  # share of leases whose holder was not at the unit
    audit_share: float  # of the work computed: looking at others' results
    audits: AuditFigures

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def make_report(
    run: Simulation,
    violations: Sequence[Violation],
    useful_s: float,
    ideal: Ideal,
    took_s: tuple[float, float],
) -> Report:
    """Turn what was counted into figures; `took_s`: on the clock, and of the processor."""
    measures, host, world = run.measures, run.host, run.world
    elapsed_s = max(world.elapsed_s, 1.0)
    state = host.coordinator.state
    run_s = (run.watch.finished_at or world.now) - START_S
    ages = sorted(measures.lease_ages_s)
    bytes_all = measures.message_bytes + measures.blob_up_bytes + measures.blob_down_bytes
    messages_peak, bytes_peak = measures.peaks()
    done_s = max(measures.work_done, 1e-9)
    return Report(
        policy=run.scenario.policy,
        seed=run.scenario.seed,
        nodes=run.scenario.fleet.nodes,
        experts=run.scenario.experts,
        finished=run.finished,
        phase=state.phase.value,
        violations=tuple(str(violation) for violation in violations),
        broken_rule=violations[0].rule.name if violations else "",
        trace_digest=world.trace.digest(),
        virtual_days=round(run_s / DAY_S, 4),
        ideal_days=round(ideal.finished_s / DAY_S, 4) if ideal.finished_s is not None else None,
        wall_s=round(took_s[0], 2),
        cpu_s=round(took_s[1], 2),
        events=world.events,
        work_days=round(ideal.work_s / DAY_S, 3),
        busy_share=measures.busy_s / max(measures.present_s, 1.0),
        useful_share=min(1.0, useful_s / done_s),
        repeated_work=max(0.0, done_s - useful_s) / max(useful_s, 1.0),
        messages=measures.messages,
        messages_per_s_mean=measures.messages / elapsed_s,
        messages_per_s_peak=messages_peak,
        bytes_per_s_mean=bytes_all / elapsed_s,
        bytes_per_s_peak=bytes_peak,
        blob_up_bytes=measures.blob_up_bytes,
        blob_down_bytes=measures.blob_down_bytes,
        journal_bytes=host.disk.journal_bytes,
        journal_events=len(host.disk.rows),
        commits=host.disk.commits,
        coordinator_restarts=measures.restarts,
        node_starts=measures.node_starts,
        lease_age_mean_s=sum(ages) / len(ages) if ages else 0.0,
        lease_age_p99_s=ages[int(0.99 * len(ages))] if ages else 0.0,
        stale_leases=measures.leases_stale / max(1, measures.leases_seen),
        audit_share=measures.audit_work / done_s,
        audits=audit_figures(
            (from_json(kind, body) for kind, body in host.disk.rows),
            run.blobs.lies,
            run.watch.audits.liars,
        ),
    )
