"""For all tests: Ctrl-C works, whatever started the test run, and logging is left as it was.

A shell's background jobs, and some CI systems, ignore SIGINT, and children inherit that; the
tests of clean stops need it. A program that is called within a test sends its log to that
test's stderr, which is closed afterwards: another test's records must not go there.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was() -> Iterator[None]:
    root, product = logging.getLogger(), logging.getLogger("smalltalk")
    before, levels = set(root.handlers), (root.level, product.level)
    yield
    for handler in set(root.handlers) - before:
        if not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
    root.setLevel(levels[0])
    product.setLevel(levels[1])
