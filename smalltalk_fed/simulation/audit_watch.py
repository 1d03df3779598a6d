"""The observer's part that is about audits: own account of who looks at what, and who is out.

Rules: as `invariants.py`; it sees durable events and leases that are given out, and knows which
machines lie, which the core does not.
"""

from __future__ import annotations

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core.phases import Trigger
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.simulation.rules import Rule, Violation

ROUND = UnitKind.ROUTER_ROUND


def is_audit(unit_id: str) -> bool:
    """Whether a unit is an opinion on another."""
    return unit_id.startswith(f"{UnitKind.AUDIT}/")


class AuditWatch:
    """What is being looked at, and who may not do what."""

    def __init__(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self.liars: dict[str, None] = {}  # names of machines
        self.out: dict[str, None] = {}  # quarantined nodes
        self._names: dict[str, str] = {}
        self._workers: dict[str, str] = {}  # unit -> node, of results that count
        self._looked_at: dict[str, None] = {}

    def durable(self, event: ev.Event) -> None:
        """The disk has this event."""
        match event:
            case ev.NodeEnrolled():
                self._names[event.node_id] = event.name
            case ev.UnitAccepted():
                self._own_work(event.unit_id, event.node_id)
                self._workers[event.unit_id] = event.node_id
            case ev.UnitRejected() | ev.BlobLost():
                self._take_back(event.unit_id)
            case ev.AuditOpened():
                self._looked_at[event.unit_id] = None
            case ev.AuditSettled():
                self._looked_at.pop(event.unit_id, None)
            case ev.NodeQuarantined():
                self._put_out(event)
            case ev.NodeReadmitted():
                self.out.pop(event.node_id, None)
            case ev.RoundAssigned():
                self._settled(f"the division of round {event.round}", ROUND, event.round - 1)
            case ev.SegmentsMade():
                self._settled("the segments", UnitKind.SHARD)
            case ev.PhaseChanged() if event.trigger is Trigger.ROUTERS_DONE:
                self._settled("sharding", ROUND, self._manifest.config.router.rounds)
            case ev.PhaseChanged() if event.trigger is Trigger.EXPERTS_DONE:
                self._settled("evaluating", UnitKind.TRAIN_EXPERT)

    def granted(self, unit_id: str, node_id: str) -> None:
        """A node was given a unit, or keeps it."""
        self._own_work(unit_id, node_id)
        if node_id in self.out:
            raise Violation(Rule.OUT, f"{node_id} has {unit_id}")

    def _own_work(self, unit_id: str, node_id: str) -> None:
        if is_audit(unit_id):
            target = UnitKey.parse(unit_id).target
            if self._workers.get(target) == node_id:
                raise Violation(Rule.OWN_WORK, f"{unit_id} is with {node_id}, whose work it is")

    def _put_out(self, event: ev.NodeQuarantined) -> None:
        self.out[event.node_id] = None
        name = self._names.get(event.node_id, event.node_id)
        if name not in self.liars:
            raise Violation(Rule.HONEST, f"{name}: {event.reason}")
        for unit_id in event.undone:
            target = UnitKey.parse(unit_id).target
            if target in self._workers:
                self._looked_at[target] = None
        for unit_id in event.undone:
            self._take_back(unit_id)

    def _take_back(self, unit_id: str) -> None:
        self._workers.pop(unit_id, None)
        self._looked_at.pop(unit_id, None)

    def _settled(self, what: str, kind: UnitKind, number: int | None = None) -> None:
        """Nothing that `what` rests on is looked at; `number`: the routers' round."""
        for unit_id in self._looked_at:
            key = UnitKey.parse(unit_id)
            if key.kind is kind and number in (None, key.index):
                raise Violation(Rule.SETTLED, f"{what} came while {unit_id} was looked at")
