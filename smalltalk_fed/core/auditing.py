"""Asks other nodes about results, and draws the consequences of what is found.

Rules: a newcomer's first results, a doubted node's, finished experts, odd score blocks and a
secret share of all others are audited; with fewer than two nodes, or `audit.rate = 0`, none,
nor in a private run, where nobody else has the text. Of routers' rounds as many are trained
again for it as `redos` pays for; those that the judge doubts are in any case.
An opinion goes to the judge (`jobs.judge_job`, computed by the host); not good at once means
that one more is asked for. Who was found wrong is quarantined. Where no node that may look was
here for `audit.wait_s`, a result counts all the same, and that is said; not if somebody
doubted it: then it is done again, and nobody is blamed. A wrong expert that several nodes
worked on is the fault of its last one only if that one was doubted before.
"""

from __future__ import annotations

from smalltalk_fed.core import events as ev
from smalltalk_fed.core.dispatch import Dispatcher
from smalltalk_fed.core.draws import draw
from smalltalk_fed.core.exclusion import Exclusion
from smalltalk_fed.core.job_messages import Judged, JudgeJob
from smalltalk_fed.core.leases import Leases, Timers
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.records import BAD, GOOD, WAIVED
from smalltalk_fed.core.redos import may_redo, redo_part
from smalltalk_fed.core.scheduling import barred
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import AUDITED, UnitKey, UnitKind

NODES_NEEDED = 2
MAX_OPINIONS = 7
MAX_REASON = 500
MAX_DISPUTES = 3  # of one unit, before the operator is asked
RECHECK_S = 1.0


class Auditing:
    """The life of audits."""

    def __init__(
        self,
        state: HardState,
        leases: Leases,
        outbox: Outbox,
        dispatch: Dispatcher,
        exclusion: Exclusion,
        secret: bytes,
    ) -> None:
        self._state, self._leases, self._out, self._dispatch = state, leases, outbox, dispatch
        self._exclusion, self._secret = exclusion, secret
        self._waits = Timers()  # by an open audit's unit id: when to see if anybody is there
        self._disputes: dict[str, int] = {}

    # ---------------------------------------------------------------------------- opening

    def accepted(self, event: ev.UnitAccepted, now: float) -> None:
        """A result came in: does another node look at it?"""
        self._waits.drop(event.unit_id)
        reason, redo = self._why(event)
        if reason:
            self._open(event.unit_id, reason, now, redo=redo)

    def suspected(self, units: dict[str, str], now: float) -> int:
        """Score blocks look odd; returns how many of them nobody had looked at yet."""
        opened = 0
        for unit_id, why in units.items():
            known = unit_id in self._state.audits or unit_id not in self._state.finished
            if known or not self._state.in_phase(UnitKey.parse(unit_id)):
                continue
            opened += 1
            redo = self._pays_for_redo(UnitKey.parse(unit_id))
            self._open(unit_id, f"it looks odd: {why[:MAX_REASON]}", now, redo=redo)
            if self._state.joined < NODES_NEEDED:
                self._waive(unit_id, "no other node takes part", now)
        return opened

    def _why(self, event: ev.UnitAccepted) -> tuple[str, bool]:
        """Why a result is audited, empty if it is not, and whether its round is trained again."""
        config, key = self._state.manifest.config, UnitKey.parse(event.unit_id)
        if not config.audit.rate or key.kind not in AUDITED:
            return "", False
        if self._state.joined < NODES_NEEDED or is_private(self._state.manifest):
            return "", False
        if key.kind is UnitKind.TRAIN_EXPERT:
            return "every finished expert is looked at" if config.expert.collects else "", False
        part = redo_part(self._state.manifest) if self._pays_for_redo(key) else 0.0
        node = self._state.nodes[event.node_id]
        if node.doubted:
            return f"its node was doubted: {node.doubted}", part > 0
        if node.proven < config.audit.first_units:
            return f"its node is new: {node.proven} results were found good", part > 0
        share, _ = draw(self._secret, event.unit_id, event.node_id, event.outputs)
        drawn = share < max(config.audit.rate, part)
        return "drawn by chance" if drawn else "", share < part

    def _pays_for_redo(self, key: UnitKey) -> bool:
        return key.kind is UnitKind.ROUTER_ROUND and may_redo(self._state)

    def _open(self, unit_id: str, reason: str, now: float, *, redo: bool = False) -> None:
        """Ask for an opinion, the first one or one more; all are on the same sample.

        `redo`: the round is trained again for it, and for all that follow.
        """
        audit, result = self._state.audits.get(unit_id), self._state.finished[unit_id]
        _, drawn = draw(self._secret, unit_id, result.node_id, result.outputs)
        sample = drawn if audit is None else audit.sample
        redo = redo or (audit is not None and audit.redo_from > 0)
        self._out.emit(ev.AuditOpened(now, unit_id, sample, reason, redo))
        again = ", and done again for it" if redo else ""
        self._out.decide(f"{unit_id} of {result.node_id} is looked at{again}", reason)
        key = self._state.audits[unit_id].key
        self._dispatch.opened(key)
        self._waits.set(key.unit_id, now)

    # ------------------------------------------------------------------------- the verdict

    def judged(self, job: JudgeJob, outcome: Judged, now: float) -> str:
        """Take a judgement in; returns why the operator must be asked, if so."""
        unit_id = job.target.unit_id
        audit = self._state.audits[unit_id]
        reason, wrong = outcome.reason[:MAX_REASON], outcome.wrong
        if outcome.verdict == GOOD:
            settled = ev.AuditSettled(now, unit_id, GOOD, reason, dict(outcome.figures), wrong)
            liars = self._authors(unit_id, wrong)
            self._out.emit(settled)
            self._out.decide(f"{unit_id} is good", reason)
        elif outcome.verdict == BAD:
            liars = self._authors(unit_id, wrong)
            shared = bool(job.target.start_step) and not self._state.nodes[audit.node_id].doubted
            self._reject(unit_id, reason, dict(outcome.figures), wrong, now)
            if not shared:
                why = f"its result of {unit_id} is wrong: {reason}"
                self._exclusion.quarantine(audit.node_id, why, now)
        else:
            liars = self._authors(unit_id, wrong)
            if audit.number >= MAX_OPINIONS:
                return self._dispute(unit_id, f"{len(audit.opinions)} opinions differ", now)
            self._open(unit_id, f"one opinion more: {reason}", now, redo=outcome.redo)
        for node_id in liars:
            why = f"its opinion on {unit_id} is wrong: {reason}"
            self._exclusion.quarantine(node_id, why, now)
        if liars:
            self.watch(now)
        return ""

    def undecided(self, job: JudgeJob, culprit: str, reason: str, now: float) -> str:
        """A judgement could not be made; returns why the operator must be asked, if so."""
        audit = self._state.audits[job.target.unit_id]
        if culprit in audit.opinions:
            node_id = audit.opinions[culprit]
            self._out.emit(ev.UnitRejected(now, culprit, reason))
            key = UnitKey.parse(culprit)
            self._leases.failures.setdefault(key, []).append((node_id, reason))
            self.watch(now)
            return ""
        return self._dispute(job.target.unit_id, reason, now)

    def _reject(
        self, unit_id: str, reason: str, figures: dict[str, float], wrong: tuple[str, ...],
        now: float,
    ) -> None:  # fmt: skip
        self._out.emit(ev.AuditSettled(now, unit_id, BAD, reason, figures, wrong))
        self._out.emit(ev.UnitRejected(now, unit_id, reason))
        self._out.decide(f"{unit_id} is bad, and is done again", reason)

    def _authors(self, unit_id: str, opinions: tuple[str, ...]) -> list[str]:
        known = self._state.audits[unit_id].opinions
        return [known[opinion] for opinion in opinions if opinion in known]

    # ----------------------------------------------------------------------- nobody is there

    def watch(self, now: float) -> None:
        """See to every open audit: some became open without being opened."""
        for key in self._state.open:
            if key.kind is UnitKind.AUDIT:
                self._waits.set(key.unit_id, now)

    def deadline(self) -> float | None:
        """When `tick` has something to look at, or None."""
        first = self._waits.earliest()
        return first[0] if first else None

    def tick(self, now: float) -> str:
        """Waive what nobody could look at for so long; returns why the operator must be asked."""
        asked = ""
        while (first := self._waits.earliest()) is not None and first[0] <= now:
            unit_id = first[1]
            self._waits.drop(unit_id)
            key = UnitKey.parse(unit_id)
            if key not in self._state.open:
                continue
            there = self._last_there(key, now)
            due = there + self._wait_s
            if there < now and due <= now:
                asked = self._waive(key.target, self._nobody(), now) or asked
            else:
                self._waits.set(unit_id, max(due, now + RECHECK_S))
        return asked

    @property
    def _wait_s(self) -> float:
        return self._state.manifest.config.audit.wait_s

    def _nobody(self) -> str:
        return f"no node that may look at it was there for {self._wait_s:.0f} s"

    def _last_there(self, key: UnitKey, now: float) -> float:
        """When a node that may give this opinion was here for the last time.

        Of what was before a restart nothing is known; until everybody could say that it is
        here, everybody is taken to be.
        """
        leases = self._leases
        out = barred(self._state, key) | {node for node, _ in leases.failures.get(key, ())}
        busy = (node for nodes in (leases.waiting, leases.by_node) for node in nodes)
        if key in leases.by_unit or any(node not in out for node in busy):
            return now
        seen = (leases.last_there(p, now) for node, p in leases.present.items() if node not in out)
        return max((min(now, max(leases.began, leases.frozen_until)), *seen))

    def _waive(self, unit_id: str, reason: str, now: float) -> str:
        audit = self._state.audits[unit_id]
        if audit.opinions:
            return self._dispute(unit_id, f"{reason}; {audit.doubt}", now)
        key = audit.key
        self._out.emit(ev.AuditSettled(now, unit_id, WAIVED, reason))
        self._dispatch.closed(key)
        self._out.decide(f"{unit_id} counts without a look at it", reason)
        return ""

    def _dispute(self, unit_id: str, reason: str, now: float) -> str:
        """Nodes disagree about a result and nobody decides: it is done again, by another if so."""
        node_id, key = self._state.audits[unit_id].node_id, UnitKey.parse(unit_id)
        opinions = ", ".join(self._state.audits[unit_id].opinions.values())
        self._out.emit(ev.AuditSettled(now, unit_id, WAIVED, reason))
        self._out.emit(ev.UnitRejected(now, unit_id, reason))
        self._out.decide(f"{unit_id} is disputed, and is done again", reason)
        self._leases.failures.setdefault(key, []).append((node_id, reason))
        disputes = self._disputes[unit_id] = self._disputes.get(unit_id, 0) + 1
        if disputes < MAX_DISPUTES:
            return ""
        self._disputes[unit_id] = 0
        return (
            f"{unit_id} of {node_id} is disputed by {opinions or 'nobody'} and nobody else can "
            "tell; revoke one of them or invite another node, then `smalltalk-coordinator resume`"
        )
