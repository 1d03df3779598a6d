"""Look the pinned packages up in a database of known vulnerabilities: `make audit-deps`.

pip-audit does it, and needs its source of advisories, which is on the internet. Where it is not
installed, or can't reach the source, this says so and ends with 3: nothing was looked up, which
is neither good nor bad news. 0: no package has a known vulnerability; 1: one has.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
NOT_LOOKED_UP = 3
_UNREACHABLE = ("ConnectionError", "ServiceError", "Max retries", "Connection refused", "timed out")


def main() -> int:
    """Run it."""
    if importlib.util.find_spec("pip_audit") is None:
        print("nothing was looked up: pip-audit is not installed (`pip install pip-audit`)")
        return NOT_LOOKED_UP
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps",
               "--disable-pip", "--progress-spinner", "off", "--timeout", "15"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(word in done.stderr for word in _UNREACHABLE):
        last = done.stderr.strip().splitlines()[-1][:200]
        print(f"nothing was looked up: the source of advisories does not answer ({last})")
        return NOT_LOOKED_UP
    print(done.stdout + done.stderr, end="")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
