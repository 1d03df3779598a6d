"""The judge: holds a result against what other nodes say of it, in the worker process.

Rules: numpy and blobs only. The first opinion that finds a result good ends the matter. One
that doesn't convicts nobody: another is asked for (`open`), until two agree with each other,
score by score, within what machines differ by (`verdict.agree`). Those two are the truth: by
it the result is good or bad, and every opinion beside it is wrong. Bytes that are no opinion
are wrong at once. So nobody is found guilty on less than the word of two others, and a lone
liar costs one opinion more. Two that lie alike and come first would be believed.
What a router was trained on, gains only make doubtful (`redo`): then the round is trained again
for all opinions that follow, and only two nodes that did so convict. A doubter's scores are held
against theirs where both have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.job_messages import Judged, JudgeJob
from smalltalk_fed.core.units import HELDOUT, UnitKey, UnitKind
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.mixture.audit import Scores, decode_opinion, next_places, slice_places
from smalltalk_fed.mixture.idlists import decode_experts
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.mixture.verdict import (
    Finding,
    agree,
    expert_finding,
    router_finding,
    slice_finding,
)

Opinion = Mapping[str, Scores]


def judge(manifest: RunManifest, job: JudgeJob, blobs: BlobStore) -> Judged:
    """Judge the result that `job` is about.

    Raises DamagedBlob when the result's or an opinion's bytes are gone.
    """
    opinions: dict[str, Opinion] = {}
    wrong, redone = [], []
    for unit_id, ref in job.opinions:
        redo = 0 < job.redo_from <= UnitKey.parse(unit_id).index
        try:
            data = blobs.need(ref)
            opinions[unit_id] = decode_opinion(manifest, job.target.key, data, redo)
            redone += [unit_id] if redo else []
        except ValueError:
            wrong.append(unit_id)
    truth = _truth(manifest, opinions, redone or list(opinions))
    if truth is None and len(opinions) != 1:
        why = f"none of {len(job.opinions)} opinions agree with each other"
        return Judged(job.job_id, "open", why, wrong=tuple(wrong))
    spoke = truth or tuple(opinions)
    finding = _finding(manifest, job, opinions[spoke[0]], blobs)
    proof = [unit_id for unit_id in spoke if unit_id in redone or not finding.redone]
    convicts = len(proof) > 1 and not finding.doubt
    verdict = "good" if not finding.fault else "bad" if convicts else "open"
    if truth is not None and verdict != "open":
        wrong = [unit_id for unit_id, _ in job.opinions if unit_id not in truth]
    if truth is not None:
        why = f"{len(truth)} of {len(job.opinions)} opinions agree"
    else:
        why = "by one opinion"
    reason = f"{finding.fault or 'what it should be'} ({why})"
    figures, redo = finding.figures, finding.doubt
    return Judged(job.job_id, verdict, reason, figures, tuple(wrong), redo)


def _truth(
    manifest: RunManifest, opinions: Mapping[str, Opinion], heard: Sequence[str]
) -> tuple[str, ...] | None:
    """The largest group that agrees with one of `heard`, that one first; two or more.

    Of equals the earliest.
    """
    groups = [
        (
            one,
            *(
                other
                for other in opinions
                if other != one and _alike(manifest, opinions, one, other)
            ),
        )
        for one in heard
    ]
    best = max(groups, key=len, default=())
    return best if len(best) > 1 else None


def _alike(manifest: RunManifest, opinions: Mapping[str, Opinion], one: str, other: str) -> bool:
    return agree(manifest, opinions[one], opinions[other])


def _finding(manifest: RunManifest, job: JudgeJob, opinion: Opinion, blobs: BlobStore) -> Finding:
    """What one opinion says of the result."""
    target = job.target.key
    outputs = {ref.name: partial(blobs.need, ref) for ref in job.outputs}
    match target.kind:
        case UnitKind.ROUTER_ROUND:
            said_K = None
            if "next" in opinion:
                said_N = decode_scores(outputs["scores"](), manifest.config.router.chunk_sequences)
                said_K = said_N[next_places(manifest, job.sample)]
            return router_finding(manifest, opinion, said_K, job.peers)
        case UnitKind.SHARD:
            count = manifest.heldout_sequences
            if target.index != HELDOUT:
                start, stop = manifest.shard_range(target.index)
                count = stop - start
            expert_N = decode_experts(outputs["experts"](), count, manifest.experts)
            places = slice_places(manifest, target, job.sample)
            return slice_finding(manifest, target, opinion, expert_N[places])
        case _:
            return expert_finding(manifest, opinion, job.peers)
