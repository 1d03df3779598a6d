"""The status' peak of memory is the coordinator's, not that of the program that started it."""

from __future__ import annotations

import subprocess
import sys

import pytest

BALLAST_MB = 400
PARENT = f"""
import subprocess, sys
ballast = bytearray(b"1") * ({BALLAST_MB} << 20)
child = "from smalltalk_fed.host.status import process_cost as cost; print(cost(0)['rss_peak_mb'])"
subprocess.run([sys.executable, "-c", child], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's getrusage inherits the peak")
def test_a_large_parent_does_not_count() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, check=True
    )
    assert 5 < float(done.stdout) < BALLAST_MB
