"""Blobs of the simulated run: references without bytes, and id lists that are real.

Rules: an output's digest is a function of the unit and its inputs alone, so copies of a unit
agree, as real ones must. Who gets which sequence is really computed (at random, with exact
capacities, by the project's own functions), so that "every sequence in exactly one segment"
can be checked on what the journal names. Everything else is a size without content. A liar's
outputs are other digests, of which the world knows what kind of lie they are; the judge
compares as the real one does.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.job_messages import (
    AssignJob,
    Job,
    JobFinished,
    Judged,
    JudgeJob,
    Outcome,
    PricesJob,
    SegmentsJob,
    Suspects,
)
from smalltalk_fed.core.units import HELDOUT, BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import OurError
from smalltalk_fed.mixture.assignment import equal_capacity, random_assignment, weighted_capacity
from smalltalk_fed.mixture.idlists import HEADER_BYTES, decode_ids, encode_ids
from smalltalk_fed.mixture.permutation import chunk_ids, shard_ids
from smalltalk_fed.mixture.segments import segments_from_shards

CONFIG_BYTES = 700


class Blobs:
    """The coordinator's blob store: which digests are there; bytes of id lists only."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.damaged: dict[str, None] = {}
        self.lies: dict[str, str] = {}  # digest -> kind of lie
        self._backup: dict[str, int] = {}
        self._lists: dict[str, bytes] = {}

    def put(self, ref: BlobRef) -> None:
        """A whole upload."""
        self.sizes[ref.digest] = ref.size

    def put_ids(self, name: str, ids: NDArray[np.int64]) -> BlobRef:
        """Store a list of ids."""
        data = encode_ids(ids)
        ref = BlobRef(name, hashlib.sha256(data).hexdigest(), len(data))
        self.sizes[ref.digest], self._lists[ref.digest] = ref.size, data
        return ref

    def lie(self, ref: BlobRef, kind: str, who: str) -> BlobRef:
        """What a liar has in place of `ref`."""
        digest = _digest(f"{ref.digest}|{kind}|{who}")
        self.lies[digest] = kind
        return BlobRef(ref.name, digest, ref.size)

    def ids(self, digest: str) -> NDArray[np.int64]:
        """A list's ids; KeyError if it is not here."""
        return decode_ids(self._lists[digest])

    def damage(self, digest: str) -> None:
        """Lose a blob through no fault of the coordinator's."""
        self.drop(digest)
        self.damaged[digest] = None

    def drop(self, digest: str) -> None:
        """Forget a blob; the operator's backup has it still."""
        size = self.sizes.pop(digest, None)
        if size is not None:
            self._backup[digest] = size

    def restore(self, digest: str) -> None:
        """Put a blob back from the backup, if it is not here."""
        if digest in self._backup:
            self.sizes.setdefault(digest, self._backup[digest])


def output_refs(manifest: RunManifest, unit: Unit, names: tuple[str, ...]) -> tuple[BlobRef, ...]:
    """The outputs of `unit`, whoever computes it; all opinions on a result are the same."""
    inputs = ",".join(ref.digest for ref in unit.inputs)
    of = f"{unit.key.target}|{unit.sample}|{unit.redo}" if unit.key.target else unit.unit_id
    made_from = f"{of}|{inputs}|{unit.start_step}|{unit.weights}"
    return tuple(
        BlobRef(name, _digest(f"{made_from}|{name}"), _size(manifest, unit, name)) for name in names
    )


def state_ref(manifest: RunManifest, unit: Unit, step: int) -> BlobRef:
    """The weights of an expert part-way."""
    inputs = ",".join(ref.digest for ref in unit.inputs)
    made_from = f"{unit.unit_id}|{inputs}|{unit.start_step}|{step}"
    return BlobRef("weights", _digest(made_from), _size(manifest, unit, "weights"))


def do_job(manifest: RunManifest, job: Job, blobs: Blobs) -> Outcome:
    """What the coordinator's worker process does, with chance in place of scores."""
    match job:
        case JudgeJob():
            return judge(job, blobs)
        case AssignJob():
            odd = {
                f"router_round/{expert}/{job.round - 1}": "its scores are not like the others'"
                for expert, ref in enumerate(job.scores)
                if blobs.lies.get(ref.digest) == "odd" and expert not in job.checked
            }
            return Suspects(job.job_id, odd) if odd else _divide(manifest, job, blobs)
        case SegmentsJob():
            return _divide(manifest, job, blobs)
        case PricesJob():
            raise OurError(f"{job.job_id} in a simulated world, which has no silos")


def inputs_of(job: Job) -> tuple[BlobRef, ...]:
    """The blobs that a job reads."""
    match job:
        case AssignJob():
            return job.scores
        case SegmentsJob():
            return job.shards
        case JudgeJob():
            return (*job.outputs, *(ref for _, ref in job.opinions))
        case PricesJob():
            return job.counts


def judge(job: JudgeJob, blobs: Blobs) -> Judged:
    """One opinion may find a result good; two that agree decide, and the others are wrong.

    A look at a round that was trained otherwise only leads to doubt; those for whom it was
    trained again see it, and whether what the doubters said fits.
    """
    said_of = {unit_id: ref.digest for unit_id, ref in job.opinions}
    heard = [each for each in said_of if UnitKey.parse(each).index >= job.redo_from]
    alike: dict[str, list[str]] = {}
    for unit_id in heard or said_of:
        alike.setdefault(said_of[unit_id], []).append(unit_id)
    said, spoke = max(alike.items(), key=lambda each: len(each[1]))
    lie, agreed = blobs.lies.get(said, ""), len(spoke) > 1
    others = [each for each in said_of if each not in heard]
    misfits = [each for each in others if (said_of[each] in blobs.lies) != bool(lie)]
    if not agreed and (len(alike) > 1 or misfits):
        return Judged(job.job_id, "open", f"{len(said_of)} opinions differ")
    fine = not any(ref.digest in blobs.lies for ref in job.outputs)
    good = {"accuse": False, "approve": True}.get(lie, fine)
    hidden = any(blobs.lies.get(ref.digest) == "hidden" for ref in job.outputs)
    if hidden and not good and not job.redo_from and job.target.key.kind is UnitKind.ROUTER_ROUND:
        return Judged(job.job_id, "open", "it may not be what it should be", redo=True)
    wrong = (*(each for each in heard if each not in spoke), *misfits) if agreed else ()
    verdict = "good" if good else "bad" if agreed else "open"
    reason = "what it should be" if good else "not what it should be"
    return Judged(job.job_id, verdict, reason, {}, wrong)


def _divide(manifest: RunManifest, job: AssignJob | SegmentsJob, blobs: Blobs) -> JobFinished:
    config, experts = manifest.config, manifest.experts
    if isinstance(job, AssignJob):
        count = config.router.chunk_sequences
        ids = chunk_ids(config.run.seed, manifest.train_sequences, job.round - 1, count)
        made_from = f"{job.job_id}|{','.join(ref.digest for ref in job.scores)}|{job.weights}"
        expert_N = _expert_list(manifest, count, job.weights, _digest(made_from))
        lists = [ids[expert_N == expert] for expert in range(experts)]
        outputs = tuple(blobs.put_ids("share", ids) for ids in lists)
    else:
        shards = []
        for index, ref in enumerate(job.shards):
            start, stop = manifest.shard_range(index)
            expert_N = _expert_list(manifest, stop - start, job.weights, ref.digest)
            ids = shard_ids(config.run.seed, manifest.train_sequences, start, stop)
            shards.append((ids, expert_N))
        lists = segments_from_shards(shards, experts)
        outputs = tuple(blobs.put_ids("segment", ids) for ids in lists)
    figures = {f"load_{expert}": float(len(ids)) for expert, ids in enumerate(lists)}
    return JobFinished(job.job_id, outputs, figures)


def _expert_list(
    manifest: RunManifest, count: int, weights: tuple[float, ...], digest: str
) -> NDArray[np.int32]:
    configured = manifest.config.assignment.capacity
    if weights:
        capacity_E = weighted_capacity(count, weights)
    elif isinstance(configured, str):
        capacity_E = equal_capacity(count, manifest.experts)
    else:
        capacity_E = weighted_capacity(count, configured)
    return random_assignment(count, capacity_E, bytes.fromhex(digest))


def _size(manifest: RunManifest, unit: Unit, name: str) -> int:
    config = manifest.config
    match name:
        case "parameters":
            return 4 * config.router.model.parameters(manifest.vocabulary)
        case "scores":
            return HEADER_BYTES + 2 * config.router.chunk_sequences
        case "experts" if unit.key.index == HELDOUT:
            return HEADER_BYTES + manifest.heldout_sequences
        case "experts":
            start, stop = manifest.shard_range(unit.key.index)
            return HEADER_BYTES + stop - start
        case "config":
            return CONFIG_BYTES
        case "audit":
            return size_limit(manifest, "audit")
        case _:
            return 4 * config.expert.model.parameters(manifest.vocabulary)


def mean_share(manifest: RunManifest, unit: Unit) -> float:
    """Sequences of a router's share, as a multiple of an equal one; 1 for other units."""
    share = unit.input("share") if unit.key.kind is UnitKind.ROUTER_ROUND else None
    if share is None:
        return 1.0
    widest = manifest.train_sequences - 1
    width = 2 if widest < 1 << 16 else 4 if widest < 1 << 32 else 8
    count = (share.size - HEADER_BYTES) / width
    return count * manifest.experts / manifest.config.router.chunk_sequences


def _digest(made_from: str) -> str:
    return hashlib.sha256(made_from.encode()).hexdigest()
