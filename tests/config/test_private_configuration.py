"""[private]: seats and their experts, what must agree, and manifests without a corpus."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import (
    NO_CORPUS,
    CorpusManifest,
    RunManifest,
    make_manifest,
    make_private_manifest,
)
from smalltalk_fed.config.private import seat_experts, seat_of
from smalltalk_fed.errors import ConfigError, Malformed

TOKENIZER = "7" * 64


def configured(experts=4, regime="private", other=None, **private):
    table = {
        "run": {"regime": regime, "experts": experts},
        "sequence": {"length": 16, "prefix": 8},
        "private": private,
        **(other or {}),
    }
    return parse_config(table, "the test")


def public_text(tokenizer=TOKENIZER, sequences=100):
    split = {"shards": [{"file": "a.bin", "sequences": sequences, "sha256": "0" * 64}]}
    return CorpusManifest.model_validate(
        {
            "sequence_tokens": 16,
            "dtype": "uint16",
            "vocabulary": 300,
            "tokenizer_sha256": tokenizer,
            "train": {**split, "documents": 9},
            "heldout": {**split, "documents": 9},
        }
    )


def test_a_seat_hosts_one_expert_unless_said_otherwise():
    assert seat_experts(configured(3)) == (range(1), range(1, 2), range(2, 3))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_seats_divide_the_experts_in_order(counts):
    config = configured(sum(counts), experts_of=counts)
    seats = seat_experts(config)
    assert [len(experts) for experts in seats] == counts
    assert [expert for experts in seats for expert in experts] == list(range(sum(counts)))
    for seat, experts in enumerate(seats):
        assert all(seat_of(config, expert) == seat for expert in experts)


def test_an_expert_that_is_not_there_has_no_seat():
    with pytest.raises(ValueError, match="no expert 4"):
        seat_of(configured(4), 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts_of": [1, 2]}, "3 experts in all, but run.experts is 4"),
        ({"experts_of": [4, 0]}, "seat without experts"),
        ({"other": {"assignment": {"capacity": "throughput"}}}, "must be 'equal'"),
        ({"other": {"expert": {"init": "seed"}}}, "can't be 'seed'"),
        ({"public_share": 1.0}, "public_share"),
    ],
)
def test_what_does_not_agree_is_said_in_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        configured(**changes)


def test_the_section_means_nothing_where_text_is_shared():
    assert configured(regime="shared", experts_of=[1]).private.experts_of == [1]


def test_a_private_run_needs_no_corpus():
    manifest = make_private_manifest(configured(), TOKENIZER, 300, "r", 0)
    assert (manifest.train_sequences, manifest.corpus_digest) == (0, NO_CORPUS)
    assert RunManifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_shared_run_needs_one():
    with pytest.raises(ConfigError, match="needs a corpus"):
        make_private_manifest(configured(regime="shared"), TOKENIZER, 300, "r", 0)
    manifest = make_manifest(configured(regime="shared"), public_text(), "r", 0)
    empty = manifest.to_bytes().replace(b'"train_sequences":100', b'"train_sequences":0')
    with pytest.raises(Malformed, match="must be private"):
        RunManifest.from_bytes(empty)


def test_public_text_goes_with_its_share():
    public = public_text()
    manifest = make_private_manifest(configured(public_share=0.25), TOKENIZER, 300, "r", 0, public)
    assert (manifest.train_sequences, manifest.corpus_digest) == (100, public.digest)
    with pytest.raises(ConfigError, match="no public text"):
        make_private_manifest(configured(public_share=0.25), TOKENIZER, 300, "r", 0)
    with pytest.raises(ConfigError, match="public_share' is 0"):
        make_private_manifest(configured(), TOKENIZER, 300, "r", 0, public)
    with pytest.raises(ConfigError, match="another tokenizer"):
        make_private_manifest(
            configured(public_share=0.25), TOKENIZER, 300, "r", 0, public_text("8" * 64)
        )
