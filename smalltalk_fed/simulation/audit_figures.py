"""What audits came to in a simulated run: liars caught, when, at what cost; out of the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from smalltalk_fed.core import events as ev
from smalltalk_fed.simulation.audit_watch import is_audit


@dataclass(frozen=True)
class AuditFigures:
    """Counts over one run. Times are of those that were caught, from their first wrong result."""

    liars: int  # that gave a wrong result or opinion
    liars_caught: int
    hours_until_caught: float | None  # on average
    hours_until_caught_max: float | None
    lies_until_caught: float | None  # wrong results and opinions accepted of one liar, on average
    audits_done: int  # opinions given
    honest_quarantined: int
    results_waived: int
    results_done_again: int


def audit_figures(
    events: Iterable[ev.Event], lies: Mapping[str, str], liars: Mapping[str, None]
) -> AuditFigures:
    """`lies`: digests that are lies; `liars`: names of the machines that lie."""
    first: dict[str, float] = {}
    told: dict[str, int] = {}
    caught: dict[str, float] = {}
    names: dict[str, str] = {}
    done = honest = waived = again = 0
    for event in events:
        match event:
            case ev.NodeEnrolled():
                names[event.node_id] = event.name
            case ev.UnitAccepted():
                done += is_audit(event.unit_id)
                if any(ref.digest in lies for ref in event.outputs):
                    first.setdefault(event.node_id, event.at)
                    told[event.node_id] = told.get(event.node_id, 0) + 1
            case ev.AuditSettled():
                waived += event.verdict == "waived"
            case ev.UnitRejected():
                again += 1
            case ev.NodeQuarantined():
                again += sum(not is_audit(unit_id) for unit_id in event.undone)
                if names.get(event.node_id) in liars:
                    caught.setdefault(event.node_id, event.at)
                else:
                    honest += 1
    hours = [(caught[node] - first[node]) / 3600 for node in caught if node in first]
    lies_each = [told[node] for node in caught if node in told]
    return AuditFigures(
        liars=len(first),
        liars_caught=len(caught),
        hours_until_caught=sum(hours) / len(hours) if hours else None,
        hours_until_caught_max=max(hours, default=None),
        lies_until_caught=sum(lies_each) / len(lies_each) if lies_each else None,
        audits_done=done,
        honest_quarantined=honest,
        results_waived=waived,
        results_done_again=again,
    )
