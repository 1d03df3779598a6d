"""Hands out work: leases, held questions, and the answers to them.

Rules: a question for work is held while there is none, so that a node learns of new work at
once; only so many are held, those of the fastest nodes and of those that have an expert or
router at hand; the others are told to come back later, so that ten thousand idle nodes cost
a few questions a second. Who gets which unit is
`scheduling`'s part. Units that nobody holds are kept as sets, audits apart from the others,
and never counted anew.
"""

from __future__ import annotations

import math

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import handout, scheduling
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import LONG
from smalltalk_fed.core.copies import Copies
from smalltalk_fed.core.leases import Lease, Leases, Waiting
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.silos import begins_again
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import OF_A_SILO, UnitKey, UnitKind

SPARE_QUESTIONS = 16  # held beyond two an expert and one a free unit
IDLE_QUESTIONS_PER_S = 1.0  # of all nodes that are told to come back


class Dispatcher:
    """Gives open units to nodes that wait."""

    def __init__(self, state: HardState, leases: Leases, outbox: Outbox) -> None:
        self._state, self._leases, self._out = state, leases, outbox
        self._free: dict[UnitKey, None] = {}
        self._free_audits: dict[UnitKey, None] = {}
        self._free_of: dict[UnitKey, None] | None = None
        self._copies = Copies(state, leases)
        self._refills = 0  # of `_free`
        self._kept_times, self._kept_of = (0.0, 0.0), (-1, 0)
        self._holders: set[str] = set()
        self._holders_of: tuple[int, int, int] = (-1, -1, -1)

    @property
    def heartbeat_s(self) -> float:
        """How often a working node should say something: it learns of a pause that way, too."""
        return min(self._leases.lease_s / 4, self._state.manifest.config.run.poll_s)

    def deadline(self, now: float) -> float | None:
        """When time alone changes something, or None."""
        times = [] if (due := self._leases.deadline()) is None else [due]
        if self._leases.waiting:
            later = [self._leases.frozen_until, self._kept(now)[1], self._copies.next_due(now)]
            times += [time for time in later if now < time < math.inf]
        return min(times, default=None)

    def free(self) -> dict[UnitKey, None]:
        """Open units that nobody holds, without audits."""
        self._refill()
        return self._free

    def free_audits(self) -> dict[UnitKey, None]:
        """Open audits that nobody holds."""
        self._refill()
        return self._free_audits

    def _refill(self) -> None:
        units = self._state.open
        if units is self._free_of:
            return
        free = [key for key in units if key not in self._leases.by_unit]
        self._free = {key: None for key in free if key.kind is not UnitKind.AUDIT}
        self._free_audits = {key: None for key in free if key.kind is UnitKind.AUDIT}
        self._free_of = units
        self._refills += 1

    def _free_like(self, key: UnitKey) -> dict[UnitKey, None]:
        return self.free_audits() if key.kind is UnitKind.AUDIT else self.free()

    def opened(self, key: UnitKey) -> None:
        """An audit was opened; `state.open` has it and is the same object."""
        if key in self._state.open:
            self.free_audits()[key] = None

    def closed(self, key: UnitKey) -> None:
        """An audit that nobody holds is asked for no more."""
        self.free_audits().pop(key, None)

    # -------------------------------------------------------------------------------- leases

    def lease(self, key: UnitKey, node_id: str, now: float, *, copy: bool = False) -> Lease:
        """Grant a lease; who takes a long unit over is journaled."""
        self._free_like(key).pop(key, None)
        started = self._state.started.get(key.unit_id)
        if key.kind in LONG and not copy and (started is None or started.node_id != node_id):
            self._out.emit(ev.UnitStarted(now, key.unit_id, node_id))
        return self._leases.grant(key, node_id, now, copy=copy)

    def release(self, lease: Lease) -> None:
        """Take a lease back; its unit is free if nobody else holds it."""
        self._leases.release(lease)
        if lease.key not in self._leases.by_unit and lease.key in self._state.open:
            self._free_like(lease.key)[lease.key] = None

    def release_node(self, node_id: str) -> tuple[str, ...]:
        """Take back what a node holds; returns the units' ids."""
        lease = self._leases.by_node.get(node_id)
        if lease is None:
            return ()
        self.release(lease)
        return (lease.key.unit_id,)

    def over(self, expert: int) -> None:
        """End all leases that an expert's withdrawal voids; their holders hear when they speak.

        Those are of its own units, and of units that its silo's other experts, or whoever sums
        up with its weights, must begin again without it.
        """
        state = self._state
        for lease in list(self._leases.by_node.values()):
            key = lease.key
            if state.is_finished(key):
                if key.expert == expert or key.kind in OF_A_SILO:
                    self._leases.release(lease)
            elif begins_again(state, key, expert):
                self.release(lease)
                self._leases.dropped[lease.node_id] = key

    def finish(self, key: UnitKey, node_id: str, now: float) -> float:
        """End all leases of a unit that is finished now; returns how long the node held it."""
        self._free_like(key).pop(key, None)
        return self._leases.finish(key, node_id, now)

    # ------------------------------------------------------------------------------- offering

    def offer(self, now: float) -> None:
        """Give open units to waiting nodes, then copies of stragglers' units."""
        leases, state = self._leases, self._state
        if state.phase in (Phase.FINISHED, Phase.FAILED):
            failed, reason = state.phase is Phase.FAILED, self.ending()
            for waiting in list(leases.waiting.values()):
                self.answer(waiting, reason, stop=True, failed=failed)
            return
        if leases.waiting and now >= leases.frozen_until:
            self._match(self.free_audits(), now)
            if self._may_match(now):
                self._match(self.free(), now)
            if not self.free():
                while (found := self._copies.find(now)) is not None:
                    self._give(scheduling.Match(*found), now, copy=True)
        self._thin_out(now)

    def _match(self, free: dict[UnitKey, None], now: float) -> None:
        if free:
            for match in list(scheduling.matches(self._state, self._leases, free, now)):
                self._give(match, now)

    def ending(self) -> str:
        """Why there is no more work."""
        return f"the run is {self._state.phase}: {self._state.reason}"

    def answer(
        self,
        waiting: Waiting,
        reason: str,
        *,
        unit_key: UnitKey | None = None,
        stop: bool = False,
        failed: bool = False,
        wait_s: float = 0.0,
    ) -> None:
        """Answer a held question."""
        self._leases.unhold(waiting.node_id)
        order = msg.Order(
            reason,
            accepted=waiting.accepted,
            cancel=waiting.cancel,
            unit=handout.unit(self._state, unit_key) if unit_key else None,
            stop=stop,
            failed=failed,
            heartbeat_s=self.heartbeat_s,
            wait_s=wait_s,
        )
        self._out.reply(waiting.conversation, order)

    def _give(self, match: scheduling.Match, now: float, *, copy: bool = False) -> None:
        waiting = self._leases.waiting[match.node_id]
        lease = self.lease(match.key, match.node_id, now, copy=copy)
        lease.start_step = handout.unit(self._state, match.key).start_step
        what = "a copy of " if copy else ""
        self._out.decide(f"{what}{match.key.unit_id} goes to {match.node_id}", match.reason)
        self.answer(waiting, match.reason, unit_key=match.key)

    def _may_match(self, now: float) -> bool:
        """Whether a free unit may go to anybody now; known without a look while all are kept."""
        return bool(self.free()) and self._kept(now)[0] <= now

    def _kept(self, now: float) -> tuple[float, float]:
        """Until when all free units are kept for nodes that don't wait, and the first such time
        that is to come; infinite if there is none.

        Only `leases.changes` can make it earlier: the nodes that units are kept for are watched.
        """
        leases, free = self._leases, self.free()
        if self._kept_of == (leases.changes, self._refills) and now < self._kept_times[0]:
            return self._kept_times
        leases.watched.clear()
        first = following = math.inf
        for key in free:
            kept = self._kept_for(key)
            first = min(first, kept)
            if kept > now:
                following = min(following, kept)
            elif key.kind is UnitKind.SHARD:
                break  # kept for nobody, as all others
        self._kept_of = (leases.changes, self._refills)
        self._kept_times = (first, following)
        return self._kept_times

    def _kept_for(self, key: UnitKey) -> float:
        leases, holder = self._leases, handout.holder(self._state, key)
        if holder is None or holder in leases.waiting:
            return 0.0
        leases.watched.add(holder)
        if handout.pinned(self._state, key):
            return math.inf
        return scheduling.kept_until(self._state, leases, key)

    def _thin_out(self, now: float) -> None:
        """Send away the slowest of those that wait, if more wait than can be of use soon."""
        leases, held = self._leases, self._leases.waiting
        free = len(self.free()) + len(self.free_audits())
        most = SPARE_QUESTIONS + 2 * self._state.experts + free
        while len(held) > most:
            holders = self._present_holders()
            slowest = next(
                (node for node in leases.slowest_first() if node not in holders),
                next(leases.slowest_first()),
            )
            wait_s = self._idle_wait_s()
            why = f"enough nodes wait; this one is asked to come back in {wait_s:.0f} s"
            self._leases.present[slowest].expected = now + wait_s
            self.answer(held[slowest], why, wait_s=wait_s)

    def _present_holders(self) -> set[str]:
        state = self._state
        version = (state.round, len(state.finished), len(state.started))
        if version != self._holders_of:
            self._holders, self._holders_of = handout.holders(state), version
        return self._holders

    def _idle_wait_s(self) -> float:
        run = self._state.manifest.config.run
        idle = len(self._leases.present) - len(self._leases.by_node)
        least = min(run.poll_s, run.idle_wait_s)
        return max(least, min(idle / IDLE_QUESTIONS_PER_S, run.idle_wait_s))
