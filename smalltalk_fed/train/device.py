"""Which device, how many threads, which precision: choices made once, said plainly.

Rules: what the run's manifest fixes (`ComputeSection`) is obeyed; 'auto' means bf16 autocast
over fp32 state on GPUs that have bf16, and fp32 elsewhere. A CPU stays in fp32 unless told,
since few have fast bf16 and experts of one run should be alike.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from smalltalk_fed.config.run import ComputeSection
from smalltalk_fed.errors import UserError

Dtype = Literal["float32", "bfloat16"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name` ('auto', 'cpu', 'cuda', 'cuda:1', 'mps').

    'auto' is the first CUDA GPU, else Apple's, else the CPU.
    Raises UserError for a name that torch doesn't know or a device that isn't there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device '{name}' is unknown; give auto, cpu, cuda or mps.") from None
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"device '{name}' is not on this machine; give auto or cpu.")
    return device


def use_threads(compute: ComputeSection) -> None:
    """Set the number of threads that the manifest asks for; 0 leaves it as it is.

    Sums are split by thread, so another count gives other last bits.
    """
    if compute.threads and torch.get_num_threads() != compute.threads:
        torch.set_num_threads(compute.threads)


def train_dtype(compute: ComputeSection, device: torch.device) -> Dtype:
    """Return the precision that matrix products of training run in; state is always fp32."""
    if compute.train_dtype != "auto":
        return compute.train_dtype
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


def may_compile(compute: ComputeSection, device: torch.device) -> bool:
    """Whether torch.compile is used: on CUDA, unless the configuration says never."""
    return compute.compile == "auto" and device.type == "cuda"


def autocast(dtype: Dtype, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context that training's forward passes run in."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
