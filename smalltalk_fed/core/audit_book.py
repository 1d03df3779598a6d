"""How audits, quarantine and results that are taken back change hard state. Only `apply` folds.

Rules: an opinion counts as judged when the audit is settled or one more was asked for.
Opinions of one result are numbered on, also when the result is taken back and done again, so
that a late opinion on the old result is never taken for one on the new. A settled audit
whose last supporter turns out a liar is open again under the same number. `redos` counts
opinions for which a round is trained again, also those on results that count no more: their
work was spent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smalltalk_fed.core import events as ev
from smalltalk_fed.core.records import BAD, GOOD, Audit
from smalltalk_fed.core.units import UnitKey, UnitKind, audit_key

if TYPE_CHECKING:
    from smalltalk_fed.core.state import HardState

PROVEN_AFTER_DOUBT = 2  # results that must be good before a doubted node's are sampled again
WAIVED_KEPT = 200


def opened(state: HardState, event: ev.AuditOpened) -> None:
    """One more opinion is asked for; the first one opens the audit."""
    number = state.asked.get(event.unit_id, 0) + 1
    state.asked[event.unit_id] = number
    audit = state.audits.get(event.unit_id)
    if audit is None:
        worker = state.finished[event.unit_id].node_id
        audit = Audit(event.unit_id, worker, event.sample, event.reason, number)
        state.audits[event.unit_id] = audit
        state.unsettled[event.unit_id] = None
    else:
        audit.number, audit.doubt = number, event.reason
    if event.redo:
        audit.redo_from = audit.redo_from or number
        state.redos += 1
    state.to_judge.pop(event.unit_id, None)
    state.came_open(audit.key)


def given(state: HardState, event: ev.UnitAccepted, key: UnitKey) -> None:
    """An opinion is in; it waits for the judge."""
    state.audits[key.target].opinions[event.unit_id] = event.node_id
    state.to_judge[key.target] = None
    state.nodes[event.node_id].opinions += 1


def settled(state: HardState, event: ev.AuditSettled) -> None:
    """The result was found good or bad, or nobody looked."""
    audit = state.audits[event.unit_id]
    audit.verdict, audit.why, audit.figures = event.verdict, event.reason, dict(event.figures)
    for unit_id in event.wrong:
        if unit_id in audit.opinions:
            audit.wrong[unit_id] = audit.opinions.pop(unit_id)
    state.unsettled.pop(event.unit_id, None)
    state.to_judge.pop(event.unit_id, None)
    state.came_closed(audit.key)
    worker = state.nodes[audit.node_id]
    if event.verdict == GOOD:
        worker.good += 1
        worker.proven += 1
        if worker.proven >= PROVEN_AFTER_DOUBT:
            worker.doubted = ""
        return
    if event.verdict == BAD:
        worker.bad += 1
        worker.doubted, worker.proven = event.reason, 0
        return
    worker.waived += 1
    if audit.opinions:  # somebody found it not good
        worker.doubted, worker.proven = event.reason, 0
    state.waived[event.unit_id] = event.reason
    while len(state.waived) > WAIVED_KEPT:
        del state.waived[next(iter(state.waived))]


def quarantined(state: HardState, event: ev.NodeQuarantined) -> None:
    """The node is out, and what `undone` names counts no more."""
    node = state.nodes[event.node_id]
    state.joined -= node.takes_part
    node.quarantined = event.reason
    for unit_id in event.undone:
        cut(state, unit_id, event.node_id)
        taken_back(state, unit_id)


def readmitted(state: HardState, event: ev.NodeReadmitted) -> None:
    """The node may work again, as a newcomer."""
    node = state.nodes[event.node_id]
    state.joined -= node.takes_part
    node.quarantined = node.doubted = ""
    node.proven = 0
    state.joined += node.takes_part


def taken_back(state: HardState, unit_id: str) -> None:
    """A result, or an opinion, counts no more; its unit is open again."""
    key = UnitKey.parse(unit_id)
    if key.kind is UnitKind.AUDIT:
        _void(state, key)
    else:
        state.finished.pop(unit_id, None)
        state.waived.pop(unit_id, None)
        drop(state, unit_id)
    state.anew()


def drop(state: HardState, unit_id: str) -> None:
    """Forget a result's audit; the numbering stays."""
    if state.audits.pop(unit_id, None) is None:
        return
    state.unsettled.pop(unit_id, None)
    state.to_judge.pop(unit_id, None)
    target = UnitKey.parse(unit_id)
    for number in range(1, state.asked[unit_id] + 1):
        state.finished.pop(audit_key(target, number).unit_id, None)


def forget(state: HardState, unit_id: str) -> None:
    """The run is past this unit."""
    drop(state, unit_id)
    state.asked.pop(unit_id, None)


def forget_slices(state: HardState) -> None:
    """The segments are made of the slices: what was asked about them is needed no more."""
    for unit_id in [each for each in state.asked if each.startswith(UnitKind.SHARD)]:
        forget(state, unit_id)


def cut(state: HardState, unit_id: str, node_id: str) -> None:
    """Weights part-way that a node brought, and what others built on them, count no more."""
    first = state.contributors.get(unit_id, {}).get(node_id)
    started = state.started.get(unit_id)
    if started is not None and started.node_id == node_id:
        del state.started[unit_id]
    if first is None:
        return
    kept = tuple(each for each in state.collected.get(unit_id, ()) if each.step < first)
    lineage = {step: ref for step, ref in state.lineage.pop(unit_id, {}).items() if step < first}
    by = {each: step for each, step in state.contributors.pop(unit_id).items() if step < first}
    state.collected.pop(unit_id, None)
    if kept:
        state.collected[unit_id] = kept
    if lineage:
        state.lineage[unit_id] = lineage
        state.contributors[unit_id] = by


def _void(state: HardState, key: UnitKey) -> None:
    """An opinion counts no more: if it was the one that the result rests on, it is asked again."""
    state.finished.pop(key.unit_id, None)
    audit = state.audits.get(key.target)
    if audit is None:
        return
    audit.opinions.pop(key.unit_id, None)
    if audit.verdict and not audit.opinions:
        worker = state.nodes[audit.node_id]
        if audit.verdict == GOOD:
            worker.good -= 1
            worker.proven = max(0, worker.proven - 1)
        audit.verdict = audit.why = ""
        audit.figures = {}
        state.unsettled[key.target] = None
        if audit.key.unit_id in state.finished:  # an opinion that was found wrong
            audit.number = state.asked[key.target] = state.asked[key.target] + 1
            state.redos += bool(audit.redo_from)
    if not audit.verdict and audit.key.unit_id not in state.finished:
        state.to_judge.pop(key.target, None)
