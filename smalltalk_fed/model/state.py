"""A model's weights as bytes: safetensors in fp32, one content, one byte string.

Rules: names are sorted, a tied weight is written once under the name that comes first in
the model, and what is read is checked against the model that it is for: same names, shapes
and dtype, every number finite. Nothing that executes is ever read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from smalltalk_fed.errors import Malformed, WorldError, shown

_METADATA = {"format": "pt"}  # transformers refuses files without it


def named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's weights by name, sorted, a tied weight once; views, not copies."""
    return {name: weight.detach() for name, weight in sorted(model.named_parameters())}


def state_to_bytes(model: nn.Module) -> bytes:
    """Return the weights as safetensors in fp32; equal weights give equal bytes."""
    return save(_portable(model), metadata=_METADATA)


def state_from_bytes(model: nn.Module, data: bytes) -> None:
    """Put weights from `state_to_bytes` into `model`, whatever device it is on.

    Raises Malformed when `data` is no safetensors file or is for another shape; the model is
    then as it was.
    """
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Malformed(f"the weights can't be read: {shown(str(error), 300)}") from None
    _check_names(model, weights.keys())
    for name, weight in named_weights(model).items():
        _check(name, weight, weights[name])
    _copy(model, weights)


def state_to_file(model: nn.Module, path: Path, write: bool = True) -> None:
    """Write what `state_to_bytes` gives to `path`, at once or not at all.

    Of processes that hold a model together all must call this, and one `write`.
    """
    weights = _portable(model)
    if write:
        weights_to_file(weights, path)


def copied_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what `state_to_file` would write, as copies: training may go on meanwhile.

    Of processes that hold a model together all must call this.
    """
    return _portable(model, copy=True)


def weights_to_file(weights: dict[str, torch.Tensor], path: Path, durable: bool = True) -> None:
    """Write weights from `copied_weights` as `state_to_file` does; `durable`: wait for the disk."""
    write_atomically(path, lambda part: save_file(weights, part, metadata=_METADATA), durable)


def state_from_file(model: nn.Module, path: Path) -> None:
    """Like `state_from_bytes`, tensor by tensor from a memory-mapped file.

    Raises Malformed as there (a wrong tensor may be found after others were put in).
    """
    try:
        with safe_open(path, framework="pt") as weights:
            _check_names(model, weights.keys())
            for name, weight in named_weights(model).items():
                value = weights.get_tensor(name)
                _check(name, weight, value)
                weight.copy_(value)
    except (SafetensorError, OSError) as error:
        why = shown(str(error), 300)
        raise Malformed(f"the weights in {path} can't be read: {why}") from None


def state_from(model: nn.Module, weights: bytes | Path) -> None:
    """`state_from_bytes` or `state_from_file`."""
    if isinstance(weights, Path):
        state_from_file(model, weights)
    else:
        state_from_bytes(model, weights)


def write_atomically(path: Path, write: Callable[[Path], None], durable: bool = True) -> None:
    """Let `write` fill a new file beside `path`, make it durable, and give it that name.

    Without `durable` the file is whole after a killed process, but not after a power cut.

    Raises WorldError when the disk refuses; `path` is then as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        if durable:
            _sync(part)
        part.replace(path)
        if durable:
            _sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise WorldError(f"{path} can't be written: {error}.") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _portable(model: nn.Module, copy: bool = False) -> dict[str, torch.Tensor]:
    weights = {}
    for name, weight in named_weights(model).items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        weights[name] = whole.to("cpu", torch.float32, copy=copy).contiguous()
    return weights


def _check_names(model: nn.Module, names: object) -> None:
    expected, given = set(named_weights(model)), set(names)  # type: ignore[call-overload]
    if expected != given:
        odd = sorted(expected ^ given)[0]
        fault = "is missing" if odd in expected else "does not belong to this shape"
        raise Malformed(f"the weights are for another model: '{shown(odd)}' {fault}")


def _check(name: str, weight: torch.Tensor, value: torch.Tensor) -> None:
    if value.shape != weight.shape or value.dtype != torch.float32:
        raise Malformed(
            f"the weights are for another model: '{name}' is {value.dtype} {list(value.shape)} "
            f"instead of torch.float32 {list(weight.shape)}"
        )
    if not bool(torch.isfinite(value).all()):
        raise Malformed(f"the weights are not all finite: '{name}' has a NaN or an infinity")


def _copy(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in named_weights(model).items():
        weight.copy_(weights[name])
