"""The judge: one good opinion is enough, and nobody is guilty on less than two that agree."""

import numpy as np
import pytest
from support.opinions import CHUNK, audit_manifest, honest_opinion

from smalltalk_fed.core.job_messages import JudgeJob
from smalltalk_fed.core.units import Unit, UnitKey
from smalltalk_fed.errors import DamagedBlob
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.jobs import run_job
from smalltalk_fed.mixture.assignment import assign
from smalltalk_fed.mixture.audit import encode_opinion, next_places, slice_places
from smalltalk_fed.mixture.idlists import encode_experts
from smalltalk_fed.mixture.scores import encode_scores

MANIFEST, SAMPLE_SEED = audit_manifest(), 99
ROUND = "router_round/1/1"


class Court:
    """A result, opinions on it, and what is found."""

    def __init__(self, folder, unit_id=ROUND, manifest=MANIFEST):
        self.folder, self.manifest, self.target = folder, manifest, UnitKey.parse(unit_id)
        (folder / "blobs").mkdir()
        self.blobs = BlobStore(folder / "blobs")
        self.truth = honest_opinion(manifest, unit_id)
        self.outputs, self.peers = [], {}

    def put(self, name, data):
        self.outputs.append(self.blobs.put(name, data))

    def block(self, error=0.0):
        """A score block that is what the opinion says, but for an error."""
        scores = np.full(CHUNK, -130.0, np.float32)
        scores[next_places(self.manifest, SAMPLE_SEED)] = self.truth["next"] + error
        self.put("scores", encode_scores(scores))

    def opinion(self, shift=0.0, *, redo=False, apart=0.0, **changes):
        """`redo`: for which the round was trained again; `apart`: nats from what it should be."""
        parts = {name: scores + shift for name, scores in self.truth.items()} | changes
        if redo:
            parts |= {f"{text}_redo": parts[f"{text}_after"] + apart for text in ("own", "rest")}
        return self.blobs.put("audit", encode_opinion(self.manifest, self.target, parts, redo))

    def judge(self, *opinions, redo_from=0):
        named = tuple(
            (f"audit/{number}/{self.target.unit_id}", ref)
            for number, ref in enumerate(opinions, start=1)
        )
        job = JudgeJob(
            "judge/x", Unit(self.target), tuple(self.outputs), {}, SAMPLE_SEED, named, self.peers,
            redo_from,
        )  # fmt: skip
        return run_job(self.manifest, job, self.folder / "blobs")


@pytest.fixture
def court(tmp_path):
    return Court(tmp_path)


def names(*numbers):
    return tuple(f"audit/{number}/{ROUND}" for number in numbers)


def test_the_first_opinion_that_finds_the_result_good_ends_it(court):
    court.block()
    found = court.judge(court.opinion())
    assert (found.job_id, found.verdict, found.wrong) == ("judge/x", "good", ())
    assert found.figures["scores_off_nats"] < 0.1


def test_a_first_opinion_against_the_result_asks_for_another(court):
    court.block(error=5.0)
    found = court.judge(court.opinion())
    assert (found.verdict, found.wrong) == ("open", ())
    assert "scores are not its router's" in found.reason


def test_two_that_agree_convict(court):
    court.block(error=5.0)
    found = court.judge(court.opinion(), court.opinion(shift=0.05))
    assert (found.verdict, found.wrong) == ("bad", ())
    assert "8 of 8 scores are not its router's" in found.reason
    assert "2 of 2 opinions agree" in found.reason


def test_a_lone_accuser_is_the_liar_once_two_others_agree(court):
    court.block()
    lie = court.opinion(shift=-40.0)
    assert court.judge(lie).verdict == "open"
    undecided = court.judge(lie, court.opinion())
    assert (undecided.verdict, undecided.wrong) == ("open", ())
    assert "agree with each other" in undecided.reason
    found = court.judge(lie, court.opinion(), court.opinion(shift=0.05))
    assert (found.verdict, found.wrong) == ("good", names(1))


def test_a_liar_who_covers_for_another_is_found_with_it(court):
    court.block(error=5.0)
    cover = court.opinion(next=court.truth["next"] + 5.0)
    found = court.judge(court.opinion(), cover, court.opinion())
    assert (found.verdict, found.wrong) == ("bad", names(2))


def test_opinions_that_all_differ_decide_nothing(court):
    court.block(error=5.0)
    shifts = [court.opinion(shift=-10.0 * number) for number in range(4)]
    assert court.judge(*shifts).verdict == "open"


def test_the_larger_group_is_believed(court):
    court.block()
    lies = [court.opinion(shift=-40.0), court.opinion(shift=-40.0)]
    found = court.judge(*lies, court.opinion(), court.opinion(), court.opinion())
    assert (found.verdict, found.wrong) == ("good", names(1, 2))


def test_bytes_that_are_no_opinion_are_wrong_and_count_for_nothing(court):
    court.block()
    rubbish = court.blobs.put("audit", b"rubbish")
    found = court.judge(rubbish)
    assert (found.verdict, found.wrong) == ("open", names(1))
    found = court.judge(rubbish, court.opinion())
    assert (found.verdict, found.wrong) == ("good", names(1))


def test_a_blob_that_is_gone_is_the_disks_fault(court):
    court.block()
    opinion = court.opinion()
    court.blobs.drop(court.outputs[0].digest)
    with pytest.raises(DamagedBlob):
        court.judge(opinion)


def test_the_last_round_has_no_block_to_compare(tmp_path):
    court = Court(tmp_path, "router_round/1/2")
    assert court.judge(court.opinion()).verdict == "good"
    worse = court.opinion(own_after=court.truth["own_before"] - 20)
    assert court.judge(worse, worse).verdict == "bad"


FAR = 5.0  # nats; tolerated are a twentieth of one for each of 32 tokens


@pytest.fixture
def doubted(court):
    """A round whose router gained less on its share than on the rest, by all who look."""
    court.block()
    court.truth["own_after"] = court.truth["own_before"] - 1
    return court


def test_gains_alone_convict_nobody_but_have_the_round_trained_again(doubted):
    found = doubted.judge(doubted.opinion())
    assert (found.verdict, found.wrong, found.redo) == ("open", (), True)
    assert "on its share than on the rest" in found.reason
    many = [doubted.opinion(shift=0.01 * number) for number in range(4)]
    found = doubted.judge(*many)
    assert (found.verdict, found.wrong, found.redo) == ("open", (), True)


def test_a_router_that_is_what_its_share_makes_of_it_is_good_in_spite_of_doubts(doubted):
    found = doubted.judge(doubted.opinion(), doubted.opinion(redo=True), redo_from=2)
    assert (found.verdict, found.wrong) == ("good", ())
    found = doubted.judge(doubted.opinion(redo=True), redo_from=1)
    assert (found.verdict, found.wrong) == ("good", ())


def test_two_for_whom_it_was_trained_again_convict_and_one_with_a_doubter_does_not(doubted):
    doubt, again = doubted.opinion(), doubted.opinion(redo=True, apart=FAR)
    found = doubted.judge(doubt, again, redo_from=2)
    assert (found.verdict, found.wrong) == ("open", ())
    assert "from what its share makes of it" in found.reason
    other = doubted.opinion(redo=True, apart=FAR + 0.5)
    found = doubted.judge(doubt, again, other, redo_from=2)
    assert (found.verdict, found.wrong) == ("bad", ())
    assert doubted.judge(again, redo_from=1).verdict == "open"
    assert doubted.judge(again, other, redo_from=1).verdict == "bad"


def test_who_says_that_the_training_gives_another_router_is_the_liar_once_two_others_agree(court):
    court.block()
    lie, good = court.opinion(redo=True, apart=FAR), court.opinion(redo=True)
    assert court.judge(lie, redo_from=1).verdict == "open"
    assert court.judge(lie, good, redo_from=1).verdict == "open"
    found = court.judge(lie, good, good, redo_from=1)
    assert (found.verdict, found.wrong) == ("good", names(1))


def test_a_doubter_with_made_up_scores_is_found_by_those_who_train_the_round_again(court):
    court.block()
    lie = court.opinion(own_after=court.truth["own_before"] - 1)
    assert court.judge(lie).redo
    good = court.opinion(redo=True)
    found = court.judge(lie, good, redo_from=2)
    assert (found.verdict, found.wrong) == ("open", ())
    found = court.judge(lie, good, good, redo_from=2)
    assert (found.verdict, found.wrong) == ("good", names(1))


def test_an_honest_doubter_between_a_liar_and_the_truth_stays_unharmed(doubted):
    doubt, good = doubted.opinion(), doubted.opinion(redo=True)
    lie = doubted.opinion(redo=True, apart=FAR)
    undecided = doubted.judge(doubt, lie, good, redo_from=2)
    assert (undecided.verdict, undecided.wrong) == ("open", ())
    found = doubted.judge(doubt, lie, good, good, redo_from=2)
    assert (found.verdict, found.wrong) == ("good", names(2))


def test_an_opinion_without_what_was_asked_for_is_none(court):
    court.block()
    found = court.judge(court.opinion(), redo_from=1)
    assert (found.verdict, found.wrong) == ("open", names(1))


@pytest.mark.parametrize("unit_id", ["shard/0", "shard/heldout"])
def test_divisions_are_judged_at_the_samples_places(tmp_path, unit_id):
    court = Court(tmp_path, unit_id)
    scores_KxE = np.stack(list(court.truth.values()), axis=1)
    heldout = unit_id.endswith("heldout")
    expert_N = np.zeros(40 if heldout else 64, np.int32)
    places = slice_places(MANIFEST, court.target, SAMPLE_SEED)
    best = scores_KxE.argmax(axis=1) if heldout else assign(scores_KxE, [2] * 4).expert_N
    expert_N[places] = best
    court.put("experts", encode_experts(expert_N, 4))
    assert court.judge(court.opinion()).verdict == "good"
    court.outputs.clear()
    expert_N[places] = (best + 1) % 4
    court.put("experts", encode_experts(expert_N, 4))
    assert court.judge(court.opinion(), court.opinion()).verdict == "bad"


def test_an_expert_is_judged_beside_its_peers(tmp_path):
    court = Court(tmp_path, "train_expert/2")
    court.put("weights", b"not looked at")
    assert court.judge(court.opinion()).verdict == "good"
    court.peers = {e: {"own_lead": 2.0} for e in (0, 1, 3)}
    weak = court.opinion(own_expert=court.truth["own_router"] - 12)
    found = court.judge(weak, weak)
    assert found.verdict == "bad"
    assert "peers" in found.reason
