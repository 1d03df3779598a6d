"""On the native carrier only protobuf, JSON and safetensors travel; no code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.executable_code import starts_processes, violations

ROOT = Path(__file__).parents[2]
PACKAGES = ("smalltalk_fed", "coordinator/smalltalk_coordinator", "node/smalltalk_node")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# Python's own pools talk to their processes, on this machine and as this user, in pickles; no
# byte of them comes from a network or a file. Whatever is new here must be of that kind.
OWN_PROCESSES = {
    "smalltalk_fed/data/encoding.py": "encodes text with several processes",
    "smalltalk_fed/host/jobs.py": "ends with the coordinator that it works for",
    "smalltalk_fed/host/workers.py": "computes assignments beside the coordinator",
    "smalltalk_fed/simulation/search.py": "simulates several seeds at a time",
}


def test_there_are_sources() -> None:
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_of_ours_can_run_what_travelled(path: Path) -> None:
    assert violations(path.read_text()) == []


def test_pickles_are_between_our_own_processes_alone() -> None:
    found = {str(path.relative_to(ROOT)) for path in SOURCES if starts_processes(path.read_text())}
    assert found == set(OWN_PROCESSES)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("import marshal as m", "imports marshal"),
        ("import dill, cloudpickle", "imports dill"),
        ("import yaml", "imports yaml"),
        ("from torch import package, hub", "imports torch.package"),
        ("eval('1')", "calls eval"),
        ("exec(text)", "calls exec"),
        ("compile(text, 'x', 'exec')", "calls compile"),
        ("__import__('pickle')", "calls __import__"),
        ("import importlib as i\ni.import_module('pickle')", "import_module"),
        ("import torch\ntorch.load(path)", "weights_only"),
        ("from torch import load\nload(path, weights_only=False)", "weights_only"),
        ("import torch\ntorch.load(path, weights_only=flag)", "weights_only"),
        ("import torch\ntorch.jit.load(path)", r"torch\.jit"),
        ("import numpy as np\nnp.load(path)", "allow_pickle"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle"),
        ("AutoModel.from_pretrained(path)", "trust_remote_code"),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", "trust_remote_code"),
        ("load(path, trust_remote_code=trust)", "trust_remote_code"),
        ("import subprocess\nsubprocess.run(line, shell=True)", "shell"),
        ("import os\nos.system(line)", r"os\.system"),
        ("archive.extractall(path)", "extractall"),
        ("import tarfile\ntarfile.open(p).extractall(o, filter='tar')", "extractall"),
        ("from multiprocessing.connection import Listener\nListener(address)", "Listener"),
    ],
)
def test_the_look_at_sources_sees(line: str, says: str) -> None:
    assert any(says.replace("\\", "") in found for found in violations(line)), violations(line)


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch\nmodel.eval()\ntorch.compile(body, dynamic=False)",
        "import re\nre.compile('x')",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "M.from_pretrained(path, trust_remote_code=False, use_safetensors=True)",
        "archive.extractall(path, filter='data')",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
    ],
)
def test_the_look_at_sources_lets_pass(line: str) -> None:
    assert violations(line) == []
