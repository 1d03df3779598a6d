"""What the status says of audits: counts, what is open, who judged, what was waived, who is out."""

from __future__ import annotations

from typing import Any

from smalltalk_fed.core.records import BAD, GOOD, WAIVED, Audit, Node
from smalltalk_fed.core.state import HardState

RESULTS_SHOWN = 500


def audit_status(state: HardState) -> dict[str, Any]:
    """The run's audits in numbers, and the latest of them one by one."""
    nodes, audit = state.nodes.values(), state.manifest.config.audit
    return {
        "rate": audit.rate,
        "note": _note(state),
        "open": len(state.unsettled),
        "good": sum(node.good for node in nodes),
        "bad": sum(node.bad for node in nodes),
        "waived": sum(node.waived for node in nodes),
        "results": [_result(each) for each in list(state.audits.values())[-RESULTS_SHOWN:]],
        "waived_units": dict(state.waived),
    }


def node_audits(node: Node, open_audits: int) -> dict[str, int]:
    """What was found of a node's results, and how often it looked at others'."""
    return {
        GOOD: node.good,
        BAD: node.bad,
        WAIVED: node.waived,
        "open": open_audits,
        "opinions": node.opinions,
    }


def _note(state: HardState) -> str | None:
    """Why results are not checked, or nothing goes on, if so."""
    joined = [node for node in state.nodes.values() if node.signing_key and not node.revoked]
    if joined and not state.joined:
        return "every node is quarantined; the run waits for another, or for `readmit`"
    if not state.manifest.config.audit.rate:
        return "audit.rate is 0: results are not checked"
    if state.joined < 2:
        return "there is no second node: results are not checked"
    if not state.manifest.config.expert.collects:
        return "experts stay with their nodes: there is nothing of them to check"
    return None


def _result(audit: Audit) -> dict[str, Any]:
    return {
        "unit_id": audit.unit_id,
        "node_id": audit.node_id,
        "reason": audit.reason,
        "verdict": audit.verdict or None,
        "why": audit.why or audit.doubt,
        "judged_by": list(audit.opinions.values()),
        "wrong": list(audit.wrong.values()),
        "figures": dict(audit.figures),
    }
