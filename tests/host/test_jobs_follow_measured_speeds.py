"""Shares by the weights that a job or a unit carries, where the run takes them from speeds."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.job_messages import (
    AssignJob,
    JobFailed,
    JobFinished,
    SegmentsJob,
)
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.jobs import capacity, run_job
from smalltalk_fed.mixture.idlists import encode_experts

WEIGHTS = (3.0, 1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def manifest(corpus: TokenCorpus) -> RunManifest:
    return tiny_manifest(corpus, assignment={"capacity": "throughput"})


def test_weights_count_only_where_the_run_asks_for_them(corpus: TokenCorpus) -> None:
    for setting, weights, expected in (
        ("throughput", WEIGHTS, [30, 10]),
        ("throughput", (), [20, 20]),
        ("equal", WEIGHTS, [20, 20]),
        ([1.0, 4.0], WEIGHTS, [8, 32]),
    ):
        run = tiny_manifest(corpus, assignment={"capacity": setting})
        assert capacity(run, 40, weights).tolist() == expected


def test_however_slow_its_node_a_router_gets_a_sequence(corpus: TokenCorpus) -> None:
    run = tiny_manifest(corpus, assignment={"capacity": "throughput"})
    for weights in ((8.0, 0.125), (0.125, 8.0)):
        assert capacity(run, 3, weights).tolist() in ([2, 1], [1, 2])
    assert capacity(run, 1, (8.0, 0.125)).tolist() == [1, 0]  # there is only one


def test_a_chunk_is_divided_by_them(manifest: RunManifest, tmp_path: Path) -> None:
    done = run_job(manifest, AssignJob("assign/1", 1, weights=WEIGHTS), tmp_path)
    assert isinstance(done, JobFinished)
    assert (done.figures["load_0"], done.figures["load_1"]) == (30, 10)


def test_slices_must_be_divided_by_them(manifest: RunManifest, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    shards = []
    for index in range(manifest.shard_count):
        start, stop = manifest.shard_range(index)
        loads = capacity(manifest, stop - start, WEIGHTS)
        expert_N = np.repeat([0, 1], loads)
        shards.append(blobs.put("experts", encode_experts(expert_N, 2)))
    job = SegmentsJob("segments", tuple(shards), WEIGHTS)
    done = run_job(manifest, job, tmp_path)
    assert isinstance(done, JobFinished)
    assert done.figures["load_0"] == 72
    refused = run_job(manifest, SegmentsJob("segments", tuple(shards)), tmp_path)
    assert isinstance(refused, JobFailed)
    assert refused.culprit == "shard/0"
