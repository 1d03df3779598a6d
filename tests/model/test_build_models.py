"""Models of a shape: sizes, determinism, and that transformers reads what we describe."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from smalltalk_fed.config.shapes import PRESETS, ModelShape
from smalltalk_fed.errors import DataError
from smalltalk_fed.model.build import build_model, load_model, model_config
from smalltalk_fed.model.state import named_weights, state_to_bytes, state_to_file

TINY = ModelShape(hidden=16, layers=2, heads=2, feed_forward=32)


@pytest.mark.parametrize("name", ["router-mini", "mini", "router-4.4m"])
def test_the_built_model_has_as_many_parameters_as_its_shape_says(name):
    shape = PRESETS[name]
    model = build_model(shape, 1024, 64, b"key")
    assert sum(w.numel() for w in model.parameters()) == shape.parameters(1024)


@pytest.mark.parametrize(
    ("name", "millions"), [("router-4.4m", 4.4), ("335m", 334.8), ("1.3b", 1273.5)]
)
def test_the_papers_presets_have_its_parameter_counts_within_one_percent(name, millions):
    config = LlamaConfig(**model_config(PRESETS[name], 32_000, 1024))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    count = sum(w.numel() for w in model.parameters())
    assert count == PRESETS[name].parameters(32_000)
    assert abs(count / 1e6 / millions - 1) < 0.01


def test_a_key_fixes_every_bit_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = state_to_bytes(build_model(TINY, 64, 32, b"key"))
    torch.rand(7)
    assert state_to_bytes(build_model(TINY, 64, 32, b"key")) == first
    assert state_to_bytes(build_model(TINY, 64, 32, b"other")) != first


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    build_model(TINY, 64, 32, b"key")
    assert torch.equal(torch.get_rng_state(), before)


def test_matrices_are_drawn_from_a_normal_of_deviation_002_and_norms_are_one():
    for name, weight in named_weights(build_model(PRESETS["mini"], 512, 64, b"key")).items():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert abs(float(weight.std()) / 0.02 - 1) < 0.1, name
            assert abs(float(weight.mean())) < 0.002, name


def test_weights_of_different_names_are_not_alike():
    weights = named_weights(build_model(TINY, 64, 32, b"key"))
    q, k = (weights[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qk")
    assert not torch.equal(q, k)


def test_config_and_weights_make_a_folder_that_transformers_loads(tmp_path):
    model = build_model(TINY, 64, 32, b"key")
    (tmp_path / "config.json").write_text(json.dumps(model_config(TINY, 64, 32)))
    state_to_file(model, tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert state_to_bytes(load_model(tmp_path, 64, 32)) == state_to_bytes(model)


def test_a_checkpoint_that_does_not_fit_the_run_is_refused_with_the_reason(tmp_path):
    model = build_model(TINY, 64, 32, b"key")
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="64 tokens in its vocabulary and the corpus 65"):
        load_model(tmp_path, 65, 32)
    with pytest.raises(DataError, match="made for 32 tokens"):
        load_model(tmp_path, 64, 33)
    with pytest.raises(DataError, match=r"no config\.json"):
        load_model(tmp_path / "nothing", 64, 32)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match="can't be loaded"):
        load_model(tmp_path, 64, 32)
