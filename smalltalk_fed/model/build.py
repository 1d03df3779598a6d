"""Models of a shape, with weights that a key fixes.

Rules: every weight is drawn from its own generator, seeded by the key and the weight's
name, so that the same key gives the same bits whatever was drawn before, and the global
random state is left as it was. The embedding is tied (arXiv 2410.03529, section 3.1).
Models come from configurations and weights alone; code that comes with a checkpoint is
never run. Saving and reading weights is `state`'s part.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from smalltalk_fed.config.model_config import (
    CONFIG_BYTES_MAX,
    INIT_STD,
    largest_count,
    model_config,
    read_model_config,
)
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.errors import DataError, PeerError, shown
from smalltalk_fed.wire.tensors import read_header


def build_model(
    shape: ModelShape, vocabulary: int, max_tokens: int, seed_key: bytes
) -> LlamaForCausalLM:
    """Build a model on the CPU in fp32: matrices from N(0, 0.02), norms at one.

    `seed_key` is any bytes, usually from `mixture.permutation.derive_key`.
    """
    config = LlamaConfig(**model_config(shape, vocabulary, max_tokens))
    config._attn_implementation = "sdpa"
    # transformers draws weights while it builds; they are drawn again below, from the key.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, INIT_STD, generator=_generator(seed_key, name))
    return model


def load_model(folder: Path, vocabulary: int, max_tokens: int) -> nn.Module:
    """Load a causal language model in Hugging Face's format, fp32, to train on from there.

    Only folders on this machine are read, only safetensors, and no code of theirs is run.
    Raises DataError when the folder holds no such model, or its vocabulary or its context is
    smaller than the run's.
    """
    _check_claims(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except Exception as error:  # as above
        raise _not_loaded(folder, error) from None
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocabulary:
        raise DataError(
            f"{folder} has {rows} tokens in its vocabulary and the corpus {vocabulary}; prepare "
            "the corpus with this model's tokenizer."
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and context < max_tokens:
        raise DataError(
            f"{folder} was made for {context} tokens and the run's sequences have {max_tokens}; "
            "prepare the corpus with shorter ones."
        )
    return model


def _check_claims(folder: Path) -> None:
    """Look at what a model would be before it is built: no code, and no larger than its weights.

    Without this a line of somebody's config.json could fill any machine's memory.
    """
    try:
        with (folder / "config.json").open("rb") as file:
            table = read_model_config(file.read(CONFIG_BYTES_MAX + 1))
        headers = [read_header(path) for path in folder.glob("*.safetensors")]
    except OSError:
        raise DataError(f"{folder} holds no model: there is no config.json in it.") from None
    except PeerError as error:
        raise DataError(f"{folder} can't be loaded: {error}.") from None
    tensors = [entry.shape for header in headers for entry in header.tensors.values()]
    parts = largest_count(table)
    if parts > len(tensors):
        raise DataError(
            f"{folder} can't be loaded: its config.json claims {parts} layers or experts, and "
            f"there are {len(tensors)} tensors."
        )
    try:
        with torch.device("meta"):  # names and shapes alone
            config = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the library makes of somebody's configuration
        raise _not_loaded(folder, error) from None
    claimed = sum(part.numel() for part in (*model.parameters(), *model.buffers()))
    there = sum(map(math.prod, tensors))
    if claimed > 2 * there:  # a head of its own may be missing
        raise DataError(
            f"{folder} can't be loaded: its config.json claims {claimed} numbers, and there are "
            f"{there}."
        )


def _not_loaded(folder: Path, error: Exception) -> DataError:
    first = shown((str(error).strip() or type(error).__name__).splitlines()[0], 300)
    return DataError(f"{folder} can't be loaded as a causal language model: {first}")


def _generator(seed_key: bytes, name: str) -> torch.Generator:
    digest = hashlib.sha256(b"smalltalk-fed weights 1\0" + seed_key + b"\0" + name.encode())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little") >> 1)
