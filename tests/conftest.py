"""For all tests: Ctrl-C works, whatever started the test run.

A shell's background jobs, and some CI systems, ignore SIGINT, and children inherit that; the
tests of clean stops need it.
"""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
