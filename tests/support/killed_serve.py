"""`smalltalk-coordinator`, which kills itself at the point that the environment names.

KILL_AT=n: at the nth point whose label has KILL_ONLY in it; POINTS: the file of labels. The
worker process imports this module, too, and counts with the coordinator.
"""

from __future__ import annotations

import os
from pathlib import Path

from smalltalk_coordinator.cli import main
from support.kill_points import Points, install

os.environ.setdefault("COORDINATOR_PID", str(os.getpid()))
install(
    Points(
        int(os.environ["KILL_AT"]),
        Path(os.environ["POINTS"]),
        os.environ.get("KILL_ONLY", ""),
        int(os.environ["COORDINATOR_PID"]),
    )
)

if __name__ == "__main__":
    main()
