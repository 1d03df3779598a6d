"""The processes that a child has started, and those have, wherever they went: for ending them all.

A process group is not enough: some programs, such as Flower's SuperLink, give a helper a session
of its own, and the helper's helpers outlive a leader that is made to stop. Rules: they are found
while the leader is still there; who is killed later is the same process, by its number and start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable

Started = dict[int, str]  # process number -> when it was started, as `ps` says it


def helpers_of(leaders: Iterable[int]) -> Started:
    """All that descend from these processes; none where `ps` can't be asked."""
    found: Started = {}
    left = list(leaders)
    parents, started = _processes() if left else ({}, {})
    while left:
        leader = left.pop()
        for pid, parent in parents.items():
            if parent == leader and pid not in found:
                found[pid] = started[pid]
                left.append(pid)
    return found


def kill_left(helpers: Started) -> None:
    """Kill those that are still there."""
    if not helpers:
        return
    _, now = _processes()
    for pid, when in helpers.items():
        if now.get(pid) == when:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> tuple[dict[int, int], Started]:
    """Every process' parent, and when it was started."""
    command = ["ps", "-A", "-o", "pid=,ppid=,lstart="]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10.0)
    except (OSError, subprocess.SubprocessError):
        return {}, {}
    parents: dict[int, int] = {}
    started: Started = {}
    for line in said.stdout.splitlines():
        pid, parent, when = line.split(maxsplit=2)
        parents[int(pid)], started[int(pid)] = int(parent), when
    return parents, started
