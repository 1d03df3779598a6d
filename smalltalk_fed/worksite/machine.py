"""What this machine has, found out without torch: threads, memory, disk, a likely device.

torch takes seconds and hundreds of megabytes to import, and threads must be settled before,
so a node that waits for work knows its GPU only by the driver. `exact_devices` asks torch;
`doctor` uses it.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from smalltalk_fed import __version__
from smalltalk_fed.core.messages import Capabilities

log = logging.getLogger("smalltalk.node")

WORKER_THREAD = "worker"  # the name of the thread that computes


@dataclass(frozen=True)
class Machine:
    """Bytes in bytes; `device` is a guess unless it was given."""

    device: str
    threads: int
    memory_bytes: int
    disk_free_bytes: int


def probe(folder: Path, device: str = "auto", threads: int = 0) -> Machine:
    """Look at this machine; `folder` is where its disk is asked for."""
    return Machine(
        device=likely_device() if device == "auto" else device,
        threads=threads or usable_threads(),
        memory_bytes=_memory_bytes(),
        disk_free_bytes=shutil.disk_usage(folder).free,
    )


def likely_device() -> str:
    """cuda where NVIDIA's driver is loaded, mps on Apple's processors, else cpu."""
    if Path("/proc/driver/nvidia/gpus").exists() or shutil.which("nvidia-smi"):
        return "cuda"
    return "mps" if (sys.platform, platform.machine()) == ("darwin", "arm64") else "cpu"


def is_gpu(device: str) -> bool:
    """Whether an NVIDIA GPU will compute, as far as can be known without torch."""
    return (likely_device() if device == "auto" else device).startswith("cuda")


def usable_threads() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def settle_threads(asked: int, of_the_run: int) -> None:
    """Prepare the environment that torch reads when it is imported.

    Idle threads must sleep: several trainers on one machine spin against each other
    otherwise. What the run fixes goes before what was asked for; 0 leaves the number alone.
    """
    if of_the_run and asked not in (0, of_the_run):
        log.warning("the run asks every node for %d threads; --threads is ignored", of_the_run)
    threads = of_the_run or asked
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if threads:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


def package_version(name: str) -> str:
    """The installed version of a package without importing it, or the empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def exact_devices() -> list[str]:
    """What torch can compute on, such as `cuda:0 NVIDIA H100`; imports torch."""
    import torch

    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def machine_name() -> str:
    """The host's name in the letters that a node's name may have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().partition(".")[0])
    return name.strip("._-")[:64] or "node"


def capabilities(
    machine: Machine,
    corpus_digest: str,
    corpus_bytes: int,
    tokens_per_s: float,
    sequences: tuple[int, int] = (0, 0),
) -> Capabilities:
    """What `Join` says of this machine; `sequences`: of a silo's text, to train on and held out."""
    torch_version = package_version("torch")
    return Capabilities(
        device=machine.device,
        threads=machine.threads,
        memory_bytes=machine.memory_bytes,
        tokens_per_s=tokens_per_s,
        corpus_digest=corpus_digest,
        corpus_bytes=corpus_bytes,
        software=f"smalltalk-fed {__version__}, python {platform.python_version()}"
        + (f", torch {torch_version}" if torch_version else ""),
        train_sequences=sequences[0],
        heldout_sequences=sequences[1],
    )


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
