"""What a node says of its units: finished, failed, in work, weights on the way.

Rules: everything was checked before (`results.check_exchange`), so nothing raises here. A
unit is accepted once; whoever comes later hears that it counts and stops. A node that works
on a unit keeps it, also after a restart of the coordinator or after its lease ran out,
unless others hold it already as often as the run allows. An opinion that nobody asks for any
more is dropped without a fuss. A failure counts for a node that had the unit; what failed often
pauses the run, but not by one node's word while others could do it, and counts anew when the
run is resumed. In a paused run a node is told to put its unit down; its checkpoint stays with
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.auditing import Auditing
from smalltalk_fed.core.dispatch import Dispatcher
from smalltalk_fed.core.handout import pinned
from smalltalk_fed.core.leases import Leases
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.scheduling import barred
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey, UnitKind

MAX_FAILURES = 6
NODES_CONVINCE = 3  # so many that failed at a unit speak for all
MAX_REASON = 500
RESUME = "; when that is mended, `smalltalk-coordinator resume`"


@dataclass
class Heard:
    """What the node's question led to; goes into the answer."""

    accepted: str = ""
    cancel: str = ""
    collected: int = 0
    stuck: str = ""  # why the run can't go on until its operator or a node's owner did something


class Reports:
    """Takes nodes' reports in."""

    def __init__(
        self,
        state: HardState,
        leases: Leases,
        outbox: Outbox,
        dispatch: Dispatcher,
        auditing: Auditing,
    ) -> None:
        self._state, self._leases, self._out, self._dispatch = state, leases, outbox, dispatch
        self._auditing = auditing

    def take(self, message: msg.Exchange, now: float) -> Heard:
        """All that one question says."""
        heard = Heard()
        if message.finished is not None:
            key = UnitKey.parse(message.finished.unit_id)
            if self._moot(key, message.node_id):
                heard.cancel = key.unit_id
            else:
                heard.accepted = self._accept(message.finished, message, now)
        if message.failed is not None:
            heard.stuck = self._give_up(message.failed, message.node_id)
        if message.collected is not None:
            heard.collected = self._collect(message.collected, message, now)
        if message.working is not None:
            heard.cancel = self._renew(message.working, message.node_id, now)
        else:
            # It says that it is at nothing: its process began anew or gave up.
            self._dispatch.release_node(message.node_id)
        return heard

    def failed(self, unit_id: str, node_id: str, reason: str) -> str:
        """Count a failure; returns why the run can't go on, if it can't."""
        key = UnitKey.parse(unit_id)
        failures = self._leases.failures.setdefault(key, [])
        failures.append((node_id, reason))
        self._leases.changes += 1
        self._out.decide(f"{unit_id} failed on {node_id or 'a node'}", reason)
        if len(failures) < MAX_FAILURES or key.kind is UnitKind.AUDIT:
            return ""
        tried = {node for node, _ in failures}
        there = {node for node, presence in self._leases.present.items() if not presence.gone}
        others = not pinned(self._state, key) and not there <= tried
        if others and len(tried) < NODES_CONVINCE:
            return ""
        self._leases.failures.pop(key)
        return f"{unit_id} failed {len(failures)} times, last on {node_id}: {reason}{RESUME}"

    def unusable(self, unit_id: str, reason: str, now: float) -> str:
        """An accepted result can't be used: its unit is open again, first for other nodes.

        Returns why the run can't go on, if it can't.
        """
        key, leases = UnitKey.parse(unit_id), self._leases
        accepted = self._state.finished.get(unit_id)
        self._out.emit(ev.UnitRejected(now, unit_id, reason))
        leases.failures[key] = leases.unusable.pop(key, []) + leases.failures.get(key, [])
        node_id = accepted.node_id if accepted else ""
        why = self.failed(unit_id, node_id, reason[:MAX_REASON])
        if not why:
            leases.unusable[key] = list(leases.failures[key])
        return why

    def _accept(self, result: Result, message: msg.Exchange, now: float) -> str:
        key = UnitKey.parse(result.unit_id)
        if self._state.is_finished(key):  # said again, or a copy was faster
            lease = self._leases.by_node.get(message.node_id)
            if lease and lease.key == key:
                self._dispatch.release(lease)
            return result.unit_id
        seconds = self._dispatch.finish(key, message.node_id, now)
        self._measure(key, message.node_id, result.figures)
        accepted = ev.UnitAccepted(
            now,
            result.unit_id,
            message.node_id,
            message.incarnation,
            result.outputs,
            dict(result.figures),
            result.signature.hex(),
            seconds,
        )
        self._out.emit(accepted)
        self._auditing.accepted(accepted, now)
        return result.unit_id

    def _collect(self, state: Result, message: msg.Exchange, now: float) -> int:
        """Keep an unfinished expert's weights if they are newer than what is here."""
        step = int(state.figures["step"])
        known = self._state.collected.get(state.unit_id)
        over = self._state.is_finished(UnitKey.parse(state.unit_id))
        if not over and (not known or known[-1].step < step):
            self._out.emit(
                ev.WeightsCollected(
                    now,
                    state.unit_id,
                    message.node_id,
                    message.incarnation,
                    step,
                    int(state.figures["from_step"]),
                    state.outputs,
                    dict(state.figures),
                    state.signature.hex(),
                )
            )
            self._out.decide(f"{state.unit_id} is safe up to step {step}", "its weights are here")
        return step

    def _give_up(self, failure: msg.Failure, node_id: str) -> str:
        key = UnitKey.parse(failure.unit_id)
        lease = self._leases.by_node.get(node_id)
        if lease and lease.key == key:
            self._dispatch.release(lease)
        had = node_id in self._leases.held.get(key, ())
        if self._state.is_finished(key) or not self._state.in_phase(key) or not had:
            return ""
        return self.failed(failure.unit_id, node_id, failure.reason[:MAX_REASON])

    def _renew(self, working: msg.Working, node_id: str, now: float) -> str:
        """Prolong a lease, or say which unit to drop."""
        key = UnitKey.parse(working.unit_id)
        begun_amiss = self._leases.dropped.pop(node_id, None) == key
        over = self._state.is_finished(key) or self._moot(key, node_id) or begun_amiss
        if over or self._state.phase is Phase.PAUSED:
            # Somebody else was faster, or what it began from counts no more, or the operator
            # wants quiet.
            self._dispatch.release_node(node_id)
            return key.unit_id
        self._measure(key, node_id, working.figures)
        lease = self._leases.by_node.get(node_id)
        if lease is None or lease.key != key:
            self._dispatch.release_node(node_id)
            others = len(self._leases.by_unit.get(key, ()))
            copies = self._state.manifest.config.run.spare_copies
            if others > copies or (others and key.kind is UnitKind.AUDIT):
                return key.unit_id
            # After a restart, or after its lease ran out.
            lease = self._dispatch.lease(key, node_id, now, copy=bool(others))
            self._out.decide(f"{key.unit_id} stays with {node_id}", "it says that it is at it")
        self._leases.renew(lease, working, now)
        return ""

    def _moot(self, key: UnitKey, node_id: str) -> bool:
        """Whether this opinion is not asked for, or not of this node."""
        if key.kind is not UnitKind.AUDIT or self._state.is_finished(key):
            return False
        return not self._state.in_phase(key) or node_id in barred(self._state, key)

    def _measure(self, key: UnitKey, node_id: str, figures: dict[str, float]) -> None:
        """Note a node's speed; only of routers, so that speeds can be compared."""
        speed, presence = figures.get("tokens_per_s", 0.0), self._leases.present.get(node_id)
        routers = key.kind in (UnitKind.ROUTER_ROUND, UnitKind.SILO_BLOCK)
        if routers and speed > 0 and presence is not None:
            presence.tokens_per_s = speed
