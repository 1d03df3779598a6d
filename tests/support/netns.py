"""Two network namespaces and a bad line between them: delay, loss, a narrow way up, outages.

The line is a pair of veth devices with `tc netem` where the kernel has that. Where it has not,
it is two TUN devices, and a thread that carries every packet from one to the other late, or
not at all. Either way the programs in the namespaces use real sockets and the kernel's TCP.
Needs root, `ip`, and leave to make namespaces: `missing` says what is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

COORDINATOR, NODE = "10.77.0.1", "10.77.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
QUEUE_S = 1.0  # what a full line's buffer holds; more is dropped, as a modem does


@dataclass(frozen=True)
class Quality:
    """What the line does to packets; the way down is fast."""

    delay_s: float = 0.15  # one way
    loss: float = 0.02
    up_bits_s: float = 1e6
    down_bits_s: float = 20e6


def missing() -> str:
    """Why there can't be such a line here, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need the command ip (iproute2)"
    name = f"st{os.getpid()}t"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces can't be made here"
    try:
        if not _has_netem(name) and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            return "the kernel has no tc netem, and /dev/net/tun can't be opened"
    finally:
        _ip("netns", "del", name)
    return ""


class Line:
    """The namespaces and what is between them. Make it with `bad_line`."""

    def __init__(self, quality: Quality, seed: int) -> None:
        number = os.getpid()
        self.coordinator, self.node = f"st{number}c", f"st{number}n"
        self._devices = (f"st{number}vc", f"st{number}vn")
        self._quality = quality
        self._carrier: _Carrier | None = None
        for name in (self.coordinator, self.node):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        near, far = self._devices
        self._netem = _has_netem(self.coordinator)
        if self._netem:
            _ip("link", "add", near, "type", "veth", "peer", "name", far)
        else:
            self._carrier = _Carrier(_open_tun(near), _open_tun(far), quality, seed)
        for name, device, mine, theirs in (
            (self.coordinator, near, COORDINATOR, NODE),
            (self.node, far, NODE, COORDINATOR),
        ):
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "addr", "add", mine, "peer", theirs, "dev", device)
            # A packet is what travels, not the bundle that the kernel would make of several.
            _ip("-n", name, "link", "set", device, "gso_max_segs", "1", "up")
        self.restore()

    def inside(self, name: str) -> list[str]:
        """What to put in front of a command that shall run in a namespace."""
        return ["ip", "netns", "exec", name]

    def cut(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        if self._carrier is not None:
            self._carrier.cut = True
        else:
            self._shape("loss", "100%")

    def restore(self) -> None:
        """The line is as it was."""
        if self._carrier is not None:
            self._carrier.cut = False
        else:
            self._shape("delay", f"{self._quality.delay_s * 1e3:.0f}ms")

    def _shape(self, *first: str) -> None:
        quality, ends = (
            self._quality,
            zip((self.coordinator, self.node), self._devices, strict=True),
        )
        loss = () if "loss" in first else ("loss", f"{quality.loss:%}")
        for (name, device), rate in zip(
            ends, (quality.down_bits_s, quality.up_bits_s), strict=True
        ):
            packets = max(8, int(QUEUE_S * rate / 8 / 1500))
            subprocess.run(
                ["ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", device, "root",
                 "netem", *first, *loss, "rate", f"{rate:.0f}bit", "limit", str(packets)],
                check=True,
            )  # fmt: skip

    def close(self) -> None:
        """Remove all of it."""
        if self._carrier is not None:
            self._carrier.close()
        for name in (self.coordinator, self.node):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextlib.contextmanager
def bad_line(quality: Quality, seed: int = 1) -> Iterator[Line]:
    """A line that is gone afterwards."""
    line = Line(quality, seed)
    try:
        yield line
    finally:
        line.close()


class _Carrier:
    """Carries packets between two TUN devices, in a thread."""

    def __init__(self, coordinator: int, node: int, quality: Quality, seed: int) -> None:
        self.cut = False
        self._random, self._quality = random.Random(seed), quality
        self._ways = {
            node: (coordinator, quality.up_bits_s),
            coordinator: (node, quality.down_bits_s),
        }
        self._free_at = dict.fromkeys(self._ways, 0.0)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._count = itertools.count()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="bad-line", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for handle in self._ways:
            os.close(handle)

    def _carry(self) -> None:
        while not self._over.is_set():
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, to, packet = heapq.heappop(self._under_way)
                with contextlib.suppress(OSError):  # the device is down
                    os.write(to, packet)
            wait_s = self._under_way[0][0] - now if self._under_way else 0.2
            for handle in select.select(list(self._ways), [], [], min(0.2, wait_s))[0]:
                with contextlib.suppress(OSError):
                    self._take(handle, os.read(handle, 65536))

    def _take(self, handle: int, packet: bytes) -> None:
        to, bits_s = self._ways[handle]
        now = time.monotonic()
        starts = max(now, self._free_at[handle])
        lost = self.cut or self._random.random() < self._quality.loss
        if lost or starts - now > QUEUE_S:
            return
        self._free_at[handle] = starts + 8 * len(packet) / bits_s
        arrives = self._free_at[handle] + self._quality.delay_s
        heapq.heappush(self._under_way, (arrives, next(self._count), to, packet))


def _open_tun(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return handle


def _has_netem(name: str) -> bool:
    command = ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root", "netem"]
    done = subprocess.run(
        [*command, "delay", "0ms"], capture_output=True, check=False
    ) if shutil.which("tc") else None  # fmt: skip
    if done is None or done.returncode:
        return False
    subprocess.run(
        ["ip", "netns", "exec", name, "tc", "qdisc", "del", "dev", "lo", "root"], check=True
    )
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
