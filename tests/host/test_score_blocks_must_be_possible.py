"""Form at hand-in: scores that no router gives, and audits that are none, are refused."""

import numpy as np
import pytest
from support.opinions import CHUNK, audit_manifest, honest_opinion

from smalltalk_fed.core.units import BlobRef, Result, UnitKey
from smalltalk_fed.errors import Malformed
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.checks import check_result
from smalltalk_fed.mixture.audit import encode_opinion, uniform_nats
from smalltalk_fed.mixture.scores import encode_scores

MANIFEST = audit_manifest()
ROUND, AUDIT = "router_round/1/1", "audit/1/router_round/1/1"


@pytest.fixture
def hand_in(tmp_path):
    (tmp_path / "blobs").mkdir()
    blobs = BlobStore(tmp_path / "blobs")

    def check(unit_id, name, data, manifest=MANIFEST):
        ref: BlobRef = blobs.put(name, data)
        check_result(manifest, Result(unit_id, (ref,)), blobs)

    return check


def block(mean, count=CHUNK):
    return encode_scores(np.linspace(mean - 5, mean + 5, count))


def test_scores_of_a_learning_router_pass(hand_in):
    hand_in(ROUND, "scores", block(-uniform_nats(MANIFEST)))
    hand_in(ROUND, "scores", block(-5.0))


def test_a_score_above_zero_is_no_log_likelihood(hand_in):
    with pytest.raises(Malformed, match="above 0"):
        hand_in(ROUND, "scores", block(-3.0))


def test_a_mean_far_below_a_uniform_guess_is_refused(hand_in):
    hand_in(ROUND, "scores", block(-1.45 * uniform_nats(MANIFEST)))
    with pytest.raises(Malformed, match="far below a uniform guess"):
        hand_in(ROUND, "scores", block(-1.55 * uniform_nats(MANIFEST)))


def test_a_block_of_another_count_is_refused(hand_in):
    with pytest.raises(Malformed, match="are expected"):
        hand_in(ROUND, "scores", block(-100.0, CHUNK - 1))


def test_an_audit_has_as_many_scores_as_its_target_asks_for(hand_in):
    target = UnitKey.parse(ROUND)
    data = encode_opinion(MANIFEST, target, honest_opinion(MANIFEST, ROUND))
    hand_in(AUDIT, "audit", data)
    with pytest.raises(Malformed, match="are expected"):
        hand_in("audit/1/shard/0", "audit", data)
    with pytest.raises(Malformed, match="header"):
        hand_in(AUDIT, "audit", b"rubbish")
