"""kill -9 at every step and before every change of a file: the same expert, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).parent / "kill_points_worker.py"
TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def test_a_node_that_is_killed_anywhere_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    paths = [ROOT, ROOT / "node", ROOT / "coordinator", TESTS]
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["odd"] == []
    # Steps, and within a checkpoint each of its files and renames, were among the points.
    names = found["points"]
    assert names.count("step") == 3
    for part in (
        "os.mkdir work/run-1/train_expert-0/checkpoints/.step-0000000003.part",
        "open work/run-1/train_expert-0/checkpoints/.step-0000000003.part/state.json",
        "os.rename work/run-1/train_expert-0/checkpoints/.step-0000000003.part",
        "os.rename work/run-1/train_expert-0/.lineage.json.part",
        "os.rename work/run-1/train_expert-0/.state-0000000002.safetensors.part",
        "os.rename work/run-1/train_expert-0/.model.safetensors.part",
        "os.rename work/run-1/train_expert-0/model.safetensors",
    ):
        assert part in names
    assert found["collected"] > 10
