"""Which computation the state waits for: a judgement, a division, the segments, new prices.

A function of hard state alone: a restarted coordinator asks for what the one before would
have asked for. Judgements come first: everything else waits for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from smalltalk_fed.core.handout import score_blocks, unit, weights
from smalltalk_fed.core.job_messages import (
    AssignJob,
    Job,
    JudgeJob,
    SegmentsJob,
)
from smalltalk_fed.core.outputs import output
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.records import GOOD, Audit
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.silos import prices_job
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, UnitKey, UnitKind


def next_job(state: HardState) -> Job | None:
    """The computation that is due, if any."""
    for unit_id in state.to_judge:
        if state.in_phase(UnitKey.parse(unit_id)):
            return judge_job(state, state.audits[unit_id])
    if is_private(state.manifest) and (state.phase is Phase.ROUTING or state.divided):
        return prices_job(state)
    if state.phase is Phase.ROUTING and state.round == 0:
        return AssignJob("assign/1", 1)
    waiting = bool(state.open) or state.waits_for_audits
    if state.phase is Phase.ROUTING and state.round < state.rounds_total and not waiting:
        number = state.round + 1
        return AssignJob(
            f"assign/{number}", number, score_blocks(state), weights(state), checked(state)
        )
    sharded = state.phase is Phase.SHARDING and not waiting
    if state.segments is None and (sharded or state.phase is Phase.TRAINING):
        shards = tuple(
            output(state, UnitKey(UnitKind.SHARD, index=index), "experts")
            for index in range(state.manifest.shard_count)
        )
        return SegmentsJob("segments", shards, weights(state))
    return None


def checked(state: HardState) -> tuple[int, ...]:
    """Experts whose block of the present round was audited, or nobody could; all, without audits.

    Looking odd is no reason to stop for them.
    """
    if not state.manifest.config.audit.rate:
        return tuple(range(state.experts))
    found = []
    for expert in range(state.experts):
        unit_id = UnitKey(UnitKind.ROUTER_ROUND, expert, state.round).unit_id
        audit = state.audits.get(unit_id)
        if audit is not None and audit.verdict:
            found.append(expert)
    return tuple(found)


def judge_job(state: HardState, audit: Audit) -> JudgeJob:
    """Hold a result against the opinions that are in.

    An expert that was taken over is named with its first step and without the weights there:
    those are gone once it is finished.
    """
    accepted, key = state.finished[audit.unit_id], UnitKey.parse(audit.unit_id)
    target = unit(state, key, 0)
    begun = int(accepted.figures.get("from_step", 0.0)) if key.kind is UnitKind.TRAIN_EXPERT else 0
    opinions = tuple(
        (unit_id, output(state, UnitKey.parse(unit_id), "audit")) for unit_id in audit.opinions
    )
    return JudgeJob(
        f"judge/{audit.key.unit_id}/{_digest((*accepted.outputs, *(ref for _, ref in opinions)))}",
        replace(target, start_step=begun),
        accepted.outputs,
        dict(accepted.figures),
        audit.sample,
        opinions,
        _peers(state, key),
        audit.redo_from,
    )


def _peers(state: HardState, key: UnitKey) -> dict[int, dict[str, float]]:
    """What was measured of the other experts' results that were found good.

    Of routers the latest such round that is remembered; the first, of shares by chance, is
    no measure for later ones.
    """
    found = {}
    rounds = [index for index in range(key.index - 2, key.index + 1) if index > 1] or [key.index]
    for expert in range(state.experts) if key.expert >= 0 else ():
        for index in rounds if key.kind is UnitKind.ROUTER_ROUND else (key.index,):
            other = state.audits.get(replace(key, expert=expert, index=index).unit_id)
            if expert != key.expert and other is not None and other.verdict == GOOD:
                found[expert] = dict(other.figures)
    return found


def _digest(refs: Iterable[BlobRef]) -> str:
    return hashlib.sha256("".join(ref.digest for ref in refs).encode()).hexdigest()[:12]
