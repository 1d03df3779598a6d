"""An expert trained by two processes that torchrun started, as one process would."""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from smalltalk_fed.errors import WorldError
from smalltalk_fed.train import group
from smalltalk_fed.train.experts import train_expert
from smalltalk_fed.train.group import (
    processes_for,
    strategy_for,
    train_in_group,
    train_on_node,
)
from smalltalk_fed.train.inputs import TrainInputs
from smalltalk_fed.train.lineage import Start, note_handed_out
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
        TrainInputs("expert", manifest, corpus, tmp_path / "group", 1, SEGMENT),
        processes=2,
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
            TrainInputs("dense", manifest, corpus, tmp_path),
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
            TrainInputs("dense", make_run(expert={"steps": 100_000}), corpus, tmp_path),
            processes=2,
            should_stop=interrupt,
        )
    assert list((tmp_path / "checkpoints").glob("step-*"))


@pytest.fixture
def collecting(make_run, corpus, tmp_path):
    manifest = make_run(expert={"steps": 400, "collect": "every 100 steps"})
    return TrainInputs("expert", manifest, corpus, tmp_path / "work", 1, SEGMENT)


@pytest.fixture
def collector(collecting, tmp_path):
    """Keeps what is handed out, and says that it knows it."""
    states = {}

    def on_state(step, path):
        kept = path.rename(tmp_path / path.name)
        start = Start(step, hashlib.sha256(kept.read_bytes()).hexdigest())
        note_handed_out(collecting.work_folder, step, start.state)
        states[start] = kept

    on_state.states = states
    return on_state


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_hands_out_weights_and_goes_on_from_its_own_checkpoint(
    collecting, collector, tmp_path
):
    with pytest.raises(Stopped):
        train_in_group(
            collecting,
            processes=2,
            on_state=collector,
            should_stop=lambda: bool(collector.states),
        )
    start = next(iter(collector.states))
    path, figures = train_in_group(replace(collecting, start=start), processes=2)
    assert (figures["from_step"], figures["steps"]) == (start.step, 400)
    whole, _ = train_in_group(replace(collecting, work_folder=tmp_path / "whole"), processes=2)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_takes_over_what_one_process_had(collecting, collector, tmp_path):
    train_on_node(collecting, device="cpu", on_state=collector)
    start, state = next(iter(collector.states.items()))
    other = replace(collecting, work_folder=tmp_path / "other", start=start, state=state)
    path, figures = train_in_group(other, processes=2)
    assert figures["from_step"] == 100
    alone, _ = train_on_node(replace(other, work_folder=tmp_path / "alone"), device="cpu")
    weights = load_file(path)
    for name, value in load_file(alone).items():
        torch.testing.assert_close(weights[name], value, rtol=5e-2, atol=5e-2)


def test_a_node_without_several_gpus_trains_in_its_own_process(make_run, corpus, tmp_path):
    manifest = make_run()
    alone, _ = train_expert(manifest, corpus, 1, SEGMENT, None, tmp_path / "alone")
    path, _ = train_on_node(
        TrainInputs("expert", manifest, corpus, tmp_path / "n", 1, SEGMENT), device="cpu"
    )
    assert path.read_bytes() == alone.read_bytes()
    seed, dense = (
        train_on_node(TrainInputs(kind, manifest, corpus, tmp_path / kind), device="cpu")[0]
        for kind in ("seed", "dense")
    )
    assert len({path.read_bytes(), seed.read_bytes(), dense.read_bytes()}) == 3


def test_several_gpus_become_as_many_processes_as_share_a_batch_evenly(
    make_run, corpus, tmp_path, monkeypatch
):
    manifest = make_run(expert={"batch_sequences": 12})
    assert [processes_for("expert", manifest, gpus) for gpus in (0, 1, 2, 4, 5, 8)] == [
        *(1, 1, 2, 4, 4, 6)
    ]
    assert processes_for("dense", manifest, 8) == 8
    state_bytes = 16 * manifest.config.expert.model.parameters(32)
    assert strategy_for(manifest, 2 * state_bytes) == "ddp"
    assert strategy_for(manifest, 2 * state_bytes - 1) == "fsdp"

    seen = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1 << 40)
    )
    monkeypatch.setattr(group, "train_in_group", lambda *_args, **more: seen.update(more))
    train_on_node(TrainInputs("expert", manifest, corpus, tmp_path, 0, SEGMENT))
    assert (seen["processes"], seen["strategy"]) == (4, "ddp")


def test_a_group_that_fails_says_where_to_look(make_run, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(group, "POLL_S", 0.01)
    with pytest.raises(WorldError, match=r"ended with code 1.*group\.log"):
        train_in_group(TrainInputs("seed", make_run(), corpus, tmp_path), processes=2)
