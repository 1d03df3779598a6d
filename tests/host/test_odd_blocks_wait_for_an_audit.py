"""A chunk is not divided by score blocks that look odd until somebody looked at them."""

import numpy as np
import pytest
from support.opinions import audit_manifest

from smalltalk_fed.core.job_messages import AssignJob, JobFinished, Suspects
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.jobs import run_job
from smalltalk_fed.mixture.scores import encode_scores

CHUNK = 256


@pytest.fixture
def blocks(tmp_path):
    """Score blocks of four routers; that of router 2 is shuffled."""
    (tmp_path / "blobs").mkdir()
    blobs, random = BlobStore(tmp_path / "blobs"), np.random.default_rng(0)
    scores = random.normal(-150, 20, (CHUNK, 1)) + random.normal(0, 3, (CHUNK, 4))
    scores[:, 2] = random.permutation(scores[:, 2])
    return tuple(blobs.put("scores", encode_scores(scores[:, e])) for e in range(4))


def divide(folder, blocks, checked=(), **audit):
    job = AssignJob("assign/2", 2, blocks, checked=checked)
    return run_job(
        audit_manifest(audit=audit, router={"chunk_sequences": CHUNK}), job, folder / "blobs"
    )


def test_the_odd_ones_unit_is_named_and_nothing_is_divided(tmp_path, blocks):
    found = divide(tmp_path, blocks)
    assert isinstance(found, Suspects)
    assert found.job_id == "assign/2"
    assert list(found.units) == ["router_round/2/1"]
    assert "nothing to do with the others'" in found.units["router_round/2/1"]


def test_what_was_audited_is_odd_no_more(tmp_path, blocks):
    assert isinstance(divide(tmp_path, blocks, checked=(2,)), JobFinished)
    assert isinstance(divide(tmp_path, blocks, checked=(0, 1)), Suspects)


def test_without_audits_nothing_is_odd(tmp_path, blocks):
    assert isinstance(divide(tmp_path, blocks, rate=0.0), JobFinished)
