"""What the estimate allows also fits: real units, in processes of their own, under the limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.core.units import UnitKind
from smalltalk_fed.mixture.idlists import encode_ids
from smalltalk_fed.worksite.footprint import disk_need, memory_need
from smalltalk_fed.worksite.guard import GB, bytes_in

# Does one unit under the limit of memory that the estimate comes to; says what it took.
CHILD = """
import json, sys
from pathlib import Path
from smalltalk_fed.worksite.guard import cap_process_memory
cap_process_memory(float(sys.argv[2]))
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import Unit, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.work import do_unit
folder = Path(sys.argv[1])
manifest = RunManifest.from_bytes((folder / "manifest").read_bytes())
corpus = TokenCorpus.open(folder / "corpus")
place = Workplace(manifest, corpus, folder / "work", folder / "experts", "cpu")
inputs = {path.name: path for path in (folder / "inputs").iterdir()}
unit = Unit(UnitKey.parse(sys.argv[3]))
do_unit(unit, inputs, place, lambda f, g: None, lambda s, p: p.unlink(), lambda: False)
status = Path("/proc/self/status").read_text()  # getrusage counts what the parent had, too
peak_kb = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"peak": 1024 * peak_kb}))
"""
SHAPES = {
    "wide vocabulary": (8000, 64, {"hidden": 64, "layers": 2, "heads": 4, "feed_forward": 128}, 16),
    "deep": (500, 128, {"hidden": 128, "layers": 8, "heads": 4, "feed_forward": 512}, 40),
    "large": (2000, 64, {"hidden": 512, "layers": 6, "heads": 8, "feed_forward": 1536}, 4),
    "long": (300, 1024, {"hidden": 64, "layers": 2, "heads": 4, "feed_forward": 128}, 8),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit is Linux's")
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_unit_fits_into_what_was_estimated_and_not_by_far(name: str, tmp_path: Path) -> None:
    vocabulary, length, shape, batch = SHAPES[name]
    corpus = write_tiny_corpus(tmp_path / "corpus", vocabulary=vocabulary, length=length)
    manifest = tiny_manifest(
        corpus,
        sequence={"length": length, "prefix": length // 4},
        expert={"model": shape, "steps": 6, "batch_sequences": batch, "collect": "every 2 steps"},
        compute={"checkpoint_s": 0.001, "checkpoint_share": 1.0},
    )
    (tmp_path / "manifest").write_bytes(manifest.to_bytes())
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "segment").write_bytes(encode_ids(np.arange(48)))
    need = memory_need(manifest, on_gpu=False).host_bytes
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(need / GB), "train_expert/0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    peak = json.loads(done.stdout.splitlines()[-1])["peak"]
    print(f"{name}: estimated {need / GB:.2f} GB, peak {peak / GB:.2f} GB")
    assert peak < need < 4 * peak
    used = bytes_in(tmp_path / "work", tmp_path / "experts", tmp_path / "inputs")
    assert used <= disk_need(manifest, UnitKind.TRAIN_EXPERT)
