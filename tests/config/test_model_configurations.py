"""A configuration that a stranger's expert comes with is the run's own, and never names code."""

from __future__ import annotations

import json

import pytest
from support.core_world import make_manifest

from smalltalk_fed.config.model_config import (
    CONFIG_BYTES_MAX,
    check_expert_config,
    model_config,
    read_model_config,
)
from smalltalk_fed.errors import Malformed, TooLarge

MANIFEST = make_manifest()
PRETRAINED = make_manifest(expert={"init": "/models/some"})
RIGHT = model_config(MANIFEST.config.expert.model, MANIFEST.vocabulary, 16)


def encoded(**changes: object) -> bytes:
    return json.dumps(RIGHT | changes).encode()


def test_the_runs_own_is_right_however_it_is_laid_out() -> None:
    check_expert_config(MANIFEST, encoded())
    check_expert_config(MANIFEST, json.dumps(RIGHT, indent=4, sort_keys=True).encode())
    check_expert_config(PRETRAINED, encoded(hidden_size=7, architectures=["Other"]))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 1 << 30},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 301},
        {"model_type": "gpt2"},
        {"use_cache": 1},
        {"rope_theta": 10000},
        {"more": None},
        {"generation_config": {"max_length": 1}},
    ],
)
def test_another_models_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Malformed, match=f"another model: '{next(iter(change))}'"):
        check_expert_config(MANIFEST, encoded(**change))


def test_a_missing_key_is_noticed() -> None:
    short = {key: value for key, value in RIGHT.items() if key != "vocab_size"}
    with pytest.raises(Malformed, match="'vocab_size'"):
        check_expert_config(MANIFEST, json.dumps(short).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"text_config": {"auto_map": {}}},
        {"layers": [{"quantization_config": {"quant_method": "evil"}}]},
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": {"": "somebody/kernel"}},
        {"trust_remote_code": True},
    ],
)
@pytest.mark.parametrize("manifest", [MANIFEST, PRETRAINED], ids=["fresh", "pretrained"])
def test_what_names_code_is_refused_at_any_depth(manifest: object, change: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(Malformed, match="would run code"):
        check_expert_config(manifest, encoded(**change))  # type: ignore[arg-type]


@pytest.mark.parametrize("usual", [None, "eager", "sdpa"])
def test_the_usual_attention_is_allowed_to_pretrained_models(usual: str | None) -> None:
    check_expert_config(PRETRAINED, encoded(_attn_implementation=usual))


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 60_000, b"null"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_model_config(data)


def test_a_large_one_is_not_even_parsed() -> None:
    with pytest.raises(TooLarge):
        read_model_config(b" " * CONFIG_BYTES_MAX + b"{}")
