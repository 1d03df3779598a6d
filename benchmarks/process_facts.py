"""What the kernel says of a process: memory, CPU, files; and a free port."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def status_mb(pid: int, name: str) -> float:
    """A size out of /proc/PID/status, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def children_mb(pid: int) -> float:
    """The largest peak among a process's children: the assignment worker."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return max((status_mb(int(child), "VmHWM") for child in found), default=0.0)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> tuple[int, int]:
    """Open files of a process, and its limit."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(line.split()[3])
    raise AssertionError("no limit of open files")
