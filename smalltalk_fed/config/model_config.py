"""`config.json` of a model in Hugging Face's format: what ours say, and what others' may not.

A node hands in its expert's, and whoever loads the mixture gives it to transformers. Rules: an
expert that a run built itself has exactly the configuration that the run implies; one that
began as somebody's pretrained model has a shape of its own, but names no code, no quantiser
and no kernels, all of which transformers would import or fetch. No torch.
"""

from __future__ import annotations

import json
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.errors import Malformed, TooLarge, shown

CONFIG_BYTES_MAX = 1 << 16
INIT_STD = 0.02
END_OF_TEXT = 0  # id of the token that begins and ends documents, in every tokenizer of ours
_NAMES_CODE = frozenset(
    {"auto_map", "custom_pipelines", "quantization_config", "trust_remote_code",
     "kernel_config", "use_kernels"}
)  # fmt: skip
# Where attention is computed: these are in transformers, a name with a slash is on a hub.
_ATTENTION = frozenset({"attn_implementation", "_attn_implementation"})
_PARTS = ("layer", "expert", "depth")
_OWN_ATTENTION = (None, "eager", "sdpa")


def model_config(shape: ModelShape, vocabulary: int, max_tokens: int) -> dict[str, Any]:
    """Return the content of `config.json` for a model of this shape.

    The same arguments give the same content on every version of transformers, so that its
    bytes can be compared.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": INIT_STD,
        "intermediate_size": shape.feed_forward_width,
        "max_position_embeddings": max_tokens,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def read_model_config(data: bytes) -> dict[str, Any]:
    """A model's configuration that names no code to run.

    Raises:
        TooLarge: over `CONFIG_BYTES_MAX`.
        Malformed: no JSON object, or it names code.
    """
    if len(data) > CONFIG_BYTES_MAX:
        raise TooLarge(f"a model's configuration has at most {CONFIG_BYTES_MAX} bytes")
    try:
        config = json.loads(data)
        code = sorted(_code_in(config))
    except (ValueError, RecursionError):
        raise Malformed("a model's configuration is not JSON") from None
    if not isinstance(config, dict):
        raise Malformed("a model's configuration is not a JSON object")
    if code:
        raise Malformed(f"a model's configuration may not have '{code[0]}': it would run code")
    return config


def check_expert_config(manifest: RunManifest, data: bytes) -> None:
    """Check the configuration that a node hands in with its expert.

    Raises:
        TooLarge, Malformed: as `read_model_config`, or it is for another model than the run's.
    """
    given, run = read_model_config(data), manifest.config
    if run.expert.init not in ("fresh", "seed"):
        return
    wanted = model_config(run.expert.model, manifest.vocabulary, run.sequence.length)
    odd = sorted(key for key in given.keys() | wanted if not _same(given, wanted, key))
    if odd:
        raise Malformed(f"the expert's configuration is for another model: '{shown(odd[0])}'")


def largest_count(config: Any) -> int:
    """The largest number in a configuration that says how many parts a model has.

    Such as `num_hidden_layers`, `n_layer` or `num_local_experts`; each part has tensors.
    """
    if isinstance(config, list):
        return max(map(largest_count, config), default=0)
    if not isinstance(config, dict):
        return 0
    counts = [
        value
        for key, value in config.items()
        if isinstance(value, int) and any(word in key for word in _PARTS)
    ]
    return max([*counts, *map(largest_count, config.values())], default=0)


def _same(given: dict[str, Any], wanted: dict[str, Any], key: str) -> bool:
    both = key in given and key in wanted
    return both and type(given[key]) is type(wanted[key]) and bool(given[key] == wanted[key])


def _code_in(value: Any) -> set[str]:
    """Keys anywhere in a tree that name code."""
    if isinstance(value, list):
        return set().union(*map(_code_in, value))
    if not isinstance(value, dict):
        return set()
    found = set(value) & _NAMES_CODE
    found |= {key for key in _ATTENTION & set(value) if value[key] not in _OWN_ATTENTION}
    return found.union(*map(_code_in, value.values()))
