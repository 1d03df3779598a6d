"""The computations that the core asks for, on blobs, in a worker process.

`run_job` is a plain function of (manifest, job, blob folder): the host calls it in a worker
process so that no node waits for a reply meanwhile (a full-size chunk takes seconds). Score
blocks come in as int16, ids go out as id lists. A block that can't be used names its unit
as the culprit; with audits on, nothing is divided by blocks that look odd until they were
audited. Judging results is `judge`'s part, a private run's prices are `prices`'.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.job_messages import (
    AssignJob,
    Job,
    JobFailed,
    JobFinished,
    JudgeJob,
    Outcome,
    PricesJob,
    SegmentsJob,
    Suspects,
)
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.judge import judge
from smalltalk_fed.host.prices import move
from smalltalk_fed.mixture.assignment import (
    assign,
    equal_capacity,
    random_assignment,
    weighted_capacity,
)
from smalltalk_fed.mixture.idlists import decode_experts, encode_ids
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, shard_ids
from smalltalk_fed.mixture.plausibility import odd_blocks
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.mixture.segments import segments_from_shards


def capacity(manifest: RunManifest, sequences: int, weights: Sequence[float] = ()) -> np.ndarray:
    """Sequences that each expert gets of `sequences`, int64 [E] (method.md, section 2).

    `weights` are the experts' where the run takes them from measured speeds; equal while
    there are none. However small its weight, an expert gets one sequence if there are enough:
    a router can't train on none.
    """
    configured = manifest.config.assignment.capacity
    if isinstance(configured, list):
        weights = configured
    elif configured == "equal" or not weights:
        return equal_capacity(sequences, manifest.experts)
    capacity_E = weighted_capacity(sequences, weights)
    while sequences >= manifest.experts and not capacity_E.all():
        capacity_E[np.argmax(capacity_E)] -= 1
        capacity_E[np.argmin(capacity_E)] += 1
    return capacity_E


def end_with_parent() -> None:
    """In a worker process: end when the coordinator is gone, however it went.

    A killed parent closes no pool, and its worker would wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def run_job(manifest: RunManifest, job: Job, blob_folder: Path) -> Outcome:
    """Do `job`; its outputs are in the blob store when this returns."""
    blobs = BlobStore(blob_folder)
    match job:
        case AssignJob():
            return _assign(manifest, job, blobs)
        case SegmentsJob():
            return _segments(manifest, job, blobs)
        case JudgeJob():
            return judge(manifest, job, blobs)
        case PricesJob():
            return move(manifest, job, blobs)


def run_job_counted(manifest: RunManifest, job: Job, blob_folder: Path) -> tuple[Outcome, float]:
    """`run_job`, and the CPU seconds that this worker process has used in all."""
    return run_job(manifest, job, blob_folder), time.process_time()


def _assign(manifest: RunManifest, job: AssignJob, blobs: BlobStore) -> Outcome:
    config = manifest.config
    count = config.router.chunk_sequences
    ids = chunk_ids(config.run.seed, manifest.train_sequences, job.round - 1, count)
    capacity_E = capacity(manifest, count, job.weights)
    if not job.scores:  # Algorithm 1, line 2: the first assignment is random
        key = derive_key(config.run.seed, "first-assignment")
        expert_N = random_assignment(count, capacity_E, key)
        figures = {"displaced_fraction": 0.0, "excess_nats": 0.0}
    else:
        scores_NxE = np.empty((count, manifest.experts), np.float32)
        for expert, ref in enumerate(job.scores):
            try:
                scores_NxE[:, expert] = decode_scores(blobs.need(ref), count)
            except ValueError as error:
                culprit = f"router_round/{expert}/{job.round - 1}"
                return JobFailed(job.job_id, f"score block refused: {error}", culprit)
        if config.audit.rate > 0 and (odd := _suspects(job, scores_NxE)):
            return Suspects(job.job_id, odd)
        assignment = assign(scores_NxE, capacity_E, config.assignment.method)
        expert_N = assignment.expert_N
        figures = {
            "displaced_fraction": assignment.stats.displaced_fraction,
            "excess_nats": assignment.stats.excess_nats,
        }
        figures |= {f"price_{e}": float(price) for e, price in enumerate(assignment.prices_E)}
    shares = tuple(
        blobs.put("share", encode_ids(ids[expert_N == expert]))
        for expert in range(manifest.experts)
    )
    load_E = np.bincount(expert_N, minlength=manifest.experts)
    figures |= {f"load_{expert}": float(load) for expert, load in enumerate(load_E)}
    return JobFinished(job.job_id, shares, figures)


def _suspects(job: AssignJob, scores_NxE: np.ndarray) -> dict[str, str]:
    """Units whose score blocks look odd beside the others and were not audited yet, and why."""
    return {
        f"router_round/{expert}/{job.round - 1}": why
        for expert, why in odd_blocks(scores_NxE).items()
        if expert not in job.checked
    }


def _segments(manifest: RunManifest, job: SegmentsJob, blobs: BlobStore) -> JobFinished | JobFailed:
    shards: list[tuple[np.ndarray, np.ndarray]] = []
    for index, ref in enumerate(job.shards):
        start, stop = manifest.shard_range(index)
        try:
            expert_N = decode_experts(blobs.need(ref), stop - start, manifest.experts)
        except ValueError as error:
            return JobFailed(job.job_id, f"assignment refused: {error}", f"shard/{index}")
        load_E = np.bincount(expert_N, minlength=manifest.experts)
        if not np.array_equal(load_E, capacity(manifest, stop - start, job.weights)):
            why = f"loads {load_E.tolist()} are not balanced"
            return JobFailed(job.job_id, f"assignment refused: {why}", f"shard/{index}")
        ids = shard_ids(manifest.config.run.seed, manifest.train_sequences, start, stop)
        shards.append((ids, expert_N))
    segments = segments_from_shards(shards, manifest.experts)
    refs: list[BlobRef] = [blobs.put("segment", encode_ids(ids)) for ids in segments]
    figures = {f"load_{expert}": float(len(ids)) for expert, ids in enumerate(segments)}
    return JobFinished(job.job_id, tuple(refs), figures)
