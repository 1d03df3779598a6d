"""A mixture that somebody else made costs no more than it holds, and runs nothing of theirs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from support.tiny_mixture import change_manifest

from smalltalk_fed.evaluate.mixture import Mixture
from smalltalk_fed.mixture.package import MixtureError

HUGE = {"hidden": 65536, "layers": 1000, "heads": 1024, "feed_forward": 1 << 20}


def change_config(folder: Path, expert: int, **changes: object) -> None:
    path = folder / "experts" / str(expert) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", [{"router_shape": HUGE}, {"vocabulary": 1 << 24}])
def test_a_routers_size_is_what_its_file_holds_not_what_is_claimed(
    mixture: Path, changes: dict[str, object]
) -> None:
    change_manifest(mixture, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(MixtureError, match="for another model"):
            Mixture.load(mixture)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"quantization_config": {"quant_method": "evil"}},
        {"_attn_implementation": "somebody/kernel"},
    ],
)
def test_an_experts_configuration_names_no_code(mixture: Path, changes: dict[str, object]) -> None:
    change_config(mixture, 1, **changes)
    with pytest.raises(MixtureError, match="would run code"):
        Mixture.load(mixture).expert(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 1 << 20},
        {"num_hidden_layers": 10**6},
        {"vocab_size": 1 << 30},
        {"intermediate_size": 1 << 30},
        {"head_dim": 1 << 24},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "many"},
        {"model_type": "nothing"},
        {"hidden_act": "evil"},
        {"rope_theta": None},
    ],
)
def test_an_expert_that_claims_another_shape_is_refused_before_it_is_built(
    mixture: Path, changes: dict[str, object]
) -> None:
    change_config(mixture, 1, **changes)
    with pytest.raises(MixtureError):
        Mixture.load(mixture).expert(1)


@pytest.mark.parametrize("name", ["experts/1/config.json", "tokenizer/tokenizer_config.json"])
def test_no_file_of_it_is_a_link(mixture: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (mixture / name).rename(outside)
    (mixture / name).symlink_to(outside)
    with pytest.raises(MixtureError, match="not a plain file"):
        Mixture.load(mixture)
