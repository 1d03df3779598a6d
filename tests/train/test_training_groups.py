"""An expert trained by two processes that torchrun started, as one process would."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from smalltalk_fed.errors import WorldError
from smalltalk_fed.train import group
from smalltalk_fed.train.experts import train_expert
from smalltalk_fed.train.group import train_in_group
from smalltalk_fed.train.plan import Stopped

SEGMENT = np.arange(0, 96, 2)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_the_expert_that_one_trains(make_run, corpus, tmp_path):
    manifest, seen = make_run(), []
    alone, figures = train_expert(manifest, corpus, 1, SEGMENT, None, tmp_path / "alone")
    path, together = train_in_group(
        "expert",
        manifest,
        corpus,
        tmp_path / "group",
        processes=2,
        expert=1,
        segment_ids=SEGMENT,
        on_progress=lambda fraction, more: seen.append(fraction),
    )
    assert together["loss_last"] == pytest.approx(figures["loss_last"], rel=1e-3)
    weights = load_file(path)
    for name, value in load_file(alone).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=1e-4)
    assert all(0 < fraction <= 1 for fraction in seen)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_that_is_told_to_stop_leaves_a_checkpoint(make_run, corpus, tmp_path):
    manifest = make_run(expert={"steps": 100_000})
    with pytest.raises(Stopped):
        train_in_group(
            "dense",
            manifest,
            corpus,
            tmp_path,
            processes=2,
            should_stop=(tmp_path / "progress.json").exists,
        )
    assert list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_stops_the_group_in_good_order(make_run, corpus, tmp_path):
    def interrupt():
        if (tmp_path / "progress.json").exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train_in_group(
            "dense",
            make_run(expert={"steps": 100_000}),
            corpus,
            tmp_path,
            processes=2,
            should_stop=interrupt,
        )
    assert list((tmp_path / "checkpoints").glob("step-*"))


def test_a_group_that_fails_says_where_to_look(make_run, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(group, "POLL_S", 0.01)
    with pytest.raises(WorldError, match=r"ended with code 1.*group\.log"):
        train_in_group("seed", make_run(), corpus, tmp_path, processes=2)
