"""Holds a node to its owner's limits while it works: disk, share of the time, memory.

Rules: before a unit is begun there must be room for all that it will write, else it is handed
back with a sentence; cached inputs make way first, finished experts and checkpoints of units
that may come back never do. While it is in work its folders are measured every few seconds,
and between two steps the node pauses as long as its share of the time asks. Limits of memory
are the kernel's and torch's to keep: what goes over fails there, as on a smaller machine.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from smalltalk_fed.core.units import Unit
from smalltalk_fed.errors import WorldError
from smalltalk_fed.worksite.cache import BlobCache
from smalltalk_fed.worksite.folders import Workplace, unit_folder
from smalltalk_fed.worksite.footprint import disk_need
from smalltalk_fed.worksite.limits import GB

MEASURE_S = 5.0
PAUSE_LEAST_S = 0.02  # shorter ones are saved up: sleeping is not exact


class Guard:
    """Asked by the thread that works, unit by unit."""

    def __init__(self, place: Workplace, cache: BlobCache) -> None:
        self._place, self._cache, self._limits = place, cache, place.limits
        self._measured_at = float("-inf")
        self._full = False

    def before(self, unit: Unit) -> None:
        """Make room for `unit`, and tell torch what it may take.

        Raises:
            WorldError: there is no room within the limit of the disk.
        """
        self._measured_at, self._full = float("-inf"), False
        if self._limits.gpu_memory_gb:
            cap_gpu_memory(self._limits.gpu_memory_gb, self._place.device)
        if not self._limits.disk_gb:
            return
        need = disk_need(self._place.manifest, unit.key.kind)
        has = bytes_in(unit_folder(self._place, unit))  # of what it needs: it was here before
        over = self._used() + max(0, need - has) - self._allowed
        if over > 0:
            over -= self._cache.shed(over)
        if over > 0:
            raise WorldError(
                f"{unit.unit_id} would take this node {over / GB:.3f} GB over the "
                f"{self._limits.disk_gb:g} GB of --disk-gb: delete old experts in "
                f"{self._place.experts}, or raise the limit."
            )

    def watched(
        self, should_stop: Callable[[], bool], wait: Callable[[float], object]
    ) -> Callable[[], bool]:
        """`should_stop` for the work itself: also pauses, and says stop when the disk is full.

        `wait` sleeps so many seconds, unless the unit is dropped meanwhile.
        """
        pace = Pace(self._limits.share, wait)

        def stop() -> bool:
            pace.step()
            return should_stop() or self._over()

        return stop

    def after_stop(self) -> None:
        """Raises WorldError if it was the disk's limit that stopped the work."""
        if self._full:
            raise WorldError(
                f"this node has grown over the {self._limits.disk_gb:g} GB of --disk-gb: delete "
                f"old experts in {self._place.experts}, or raise the limit."
            )

    @property
    def _allowed(self) -> int:
        return int(self._limits.disk_gb * GB)

    def _used(self) -> int:
        folders = [self._place.folder, self._place.experts, self._cache.folder]
        text = self._place.corpus.folder
        if text.is_relative_to(self._place.folder.parent):  # a silo's tokens, made by this node
            folders.append(text)
        return bytes_in(*folders)

    def _over(self) -> bool:
        now = time.monotonic()
        if self._limits.disk_gb and now - self._measured_at >= MEASURE_S:
            self._measured_at = now
            self._full = self._used() > self._allowed
        return self._full


class Pace:
    """Pauses between steps, so that computing takes only a share of the time."""

    def __init__(
        self,
        share: float,
        wait: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._wait, self._clock = share, wait, clock
        self._since = clock()
        self._owed_s = 0.0

    def step(self) -> None:
        """A step is done: pause if enough is owed."""
        if self._share >= 1:
            return
        _finish_gpu_work()  # else only the time of handing work to the GPU would be counted
        now = self._clock()
        self._owed_s += (now - self._since) * (1 / self._share - 1)
        if self._owed_s >= PAUSE_LEAST_S:
            self._wait(self._owed_s)
            ended = self._clock()
            self._owed_s -= ended - now  # what was overslept is not owed next time
            now = ended
        self._since = now


def cap_process_memory(memory_gb: float) -> None:
    """Let the kernel refuse this process more than so much writable memory of its own; 0: no cap.

    Mapped files, such as the corpus, don't count. Where there is no such limit (not Linux), and
    for processes of a GPU, whose drivers map what they like, only the estimate before the run is
    held against it.
    """
    if not memory_gb or sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(memory_gb * GB)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def cap_gpu_memory(memory_gb: float, device: str) -> None:
    """Let torch refuse more than so much of the GPU's memory to this process."""
    import torch

    if not torch.cuda.is_available() or not device.startswith(("auto", "cuda")):
        return
    on = torch.device("cuda:0" if device in ("auto", "cuda") else device)
    total = torch.cuda.get_device_properties(on).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * GB / total), on)


def bytes_in(*folders: Path) -> int:
    """Bytes of all files in these folders; one that has two names counts once."""
    found: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    stat = os.lstat(os.path.join(root, name))  # noqa: PTH118
                except OSError:  # gone meanwhile
                    continue
                found[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(found.values())


def _finish_gpu_work() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
