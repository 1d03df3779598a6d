"""Two processes on the CPU give what one gives, under DDP and FSDP2."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from smalltalk_fed.errors import UserError
from smalltalk_fed.train.parallel import ONE_PROCESS, ProcessWorld, joined_world

WORKER = Path(__file__).parent / "parallel_worker.py"
ROOT = Path(__file__).parents[2]


def _run(folder, strategy, processes):
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    shared = os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), strategy],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in running:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-2000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("alone") / "run", "ddp", 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_and_weights_of_one(alone, tmp_path, strategy):
    pair = _run(tmp_path / "run", strategy, 2)
    facts, single = (json.loads((f / "whole.json").read_text()) for f in (pair, alone))
    assert (facts["size"], single["size"]) == (2, 1)
    np.testing.assert_allclose(facts["curve"], single["curve"], rtol=1e-4)
    expected = load_file(alone / "whole.safetensors")
    for name in ("whole", "resumed"):
        weights = load_file(pair / f"{name}.safetensors")
        assert weights.keys() == expected.keys()
        for key, value in weights.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-5)
    cut = json.loads((pair / "cut.json").read_text())
    assert cut["step"] == 8
    assert (pair / "resumed.safetensors").read_bytes() == (pair / "whole.safetensors").read_bytes()


class _Part(ProcessWorld):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("sequences", [24, 27, 25])
def test_every_row_is_one_processs_and_weights_make_the_mean_of_the_whole_batch(sequences):
    order = np.arange(sequences) + 100
    parts = [_Part(rank, 4).share(order, 8) for rank in range(4)]
    values = order.astype(float) ** 2
    for step, start in enumerate(range(0, sequences, 8)):
        batch = values[start : start + 8]
        mean = 0.0
        for mine, weights in parts:
            rows = mine[step * 2 : (step + 1) * 2].astype(float) ** 2
            mean += rows.mean() * weights[step] / 4
        assert mean == pytest.approx(batch.mean())


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(UserError, match="9 sequences can't be shared out to 2"):
        _Part(0, 2).share(np.arange(18), 9)


def test_outside_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world() as (world, device):
        assert world is ONE_PROCESS
        assert device is None
