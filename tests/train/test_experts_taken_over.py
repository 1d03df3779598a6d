"""An expert at another node: from its collected weights alone, or from its own checkpoints."""

import hashlib
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from smalltalk_fed.errors import Malformed, WorldError
from smalltalk_fed.mixture.permutation import training_order
from smalltalk_fed.model.state import state_from_file, state_to_bytes
from smalltalk_fed.train import lineage as lineages
from smalltalk_fed.train.expert_plans import base_plan, expert_plan
from smalltalk_fed.train.experts import build_expert, train_expert
from smalltalk_fed.train.lineage import Start, note_handed_out, read_lineage
from smalltalk_fed.train.loop import train
from smalltalk_fed.train.plan import Stopped

SEGMENT = np.arange(0, 96, 2)
EVERY = {"collect": "every 4 steps", "steps": 12}


class Collector:
    """Keeps the files that are handed out, elsewhere, and lets the next one come."""

    def __init__(self, folder, notes=None):
        self.folder, self.notes, self.states = folder, notes, {}
        folder.mkdir()

    def __call__(self, step, path):
        if self.notes is not None:
            note_handed_out(self.notes, step, hashlib.sha256(path.read_bytes()).hexdigest())
        self.states[step] = path.rename(self.folder / path.name)


def _written():
    """Never stop, but let a file that is being written be whole before the next step."""
    for thread in threading.enumerate():
        if thread.name == "state":
            thread.join()
    return False


def _stop_after(steps):
    left = iter(range(steps - 1))
    return lambda: _written() or next(left, None) is None


@pytest.fixture
def manifest(make_run):
    return make_run(expert=EVERY)


@pytest.fixture
def go(manifest, corpus, tmp_path):
    """Train expert 1 in a folder of `tmp_path`."""

    def run(name="work", should_stop=_written, start_step=0, state=None, digest="", **more):
        folder = tmp_path / name
        if state is not None:
            digest = hashlib.sha256(state.read_bytes()).hexdigest()
        return train_expert(
            manifest,
            corpus,
            1,
            SEGMENT,
            None,
            folder,
            start=Start(start_step, digest),
            state=state,
            should_stop=should_stop,
            **more,
        )

    return run


@pytest.fixture
def states(go, tmp_path):
    """What was collected of a training that nobody disturbed, and its weights in the end."""
    collector = Collector(tmp_path / "collected")
    weights, _ = go("whole", on_state=collector)
    return collector.states, weights


def test_weights_are_handed_out_at_every_multiple_but_the_last_step(
    states, manifest, corpus, make_run, tmp_path
):
    collected, weights = states
    assert list(collected) == [4, 8]
    # What is handed out are the weights of that step, to the bit, in the expert's own format.
    model = build_expert(manifest, "expert", 1)
    plan = base_plan(manifest, torch.device("cpu"))
    order = training_order(5, SEGMENT, 12 * 8, "expert-order", 1)
    train(
        model,
        corpus.train,
        order,
        plan=plan,
        device=torch.device("cpu"),
        should_stop=_stop_after(8),
    )
    assert collected[8].read_bytes() == state_to_bytes(model)
    state_from_file(build_expert(manifest, "expert", 1), collected[8])
    alone, _ = train_expert(make_run(), corpus, 1, SEGMENT, None, tmp_path / "never collected")
    assert weights.read_bytes() == alone.read_bytes()


def test_no_state_is_written_while_one_waits_to_go_out(go, tmp_path):
    told = []
    go(on_state=lambda step, path: told.append(step))
    assert told == [4]
    assert (tmp_path / "work" / "state-0000000004.safetensors").exists()
    go("work", on_state=lambda step, path: told.append(step))  # a new process: it is stale
    assert told == [4, 4]


def test_taking_over_goes_on_at_that_step_with_the_data_and_rates_of_then(
    states, go, manifest, corpus
):
    collected, _ = states
    path, figures = go("other", start_step=4, state=collected[4])
    model = build_expert(manifest, "expert", 1)
    state_from_file(model, collected[4])
    whole = base_plan(manifest, torch.device("cpu"))
    plan = replace(whole, start_step=4, ramp_steps=2)  # a quarter of the eight that are left
    rates = [plan.rate(step) / whole.rate(step) for step in range(4, 11)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1])
    order = training_order(5, SEGMENT, 12 * 8, "expert-order", 1)
    order[: 4 * 8] = 0  # what came before is not looked at
    train(model, corpus.train, order, plan=plan, device=torch.device("cpu"))
    assert path.read_bytes() == state_to_bytes(model)
    assert (figures["from_step"], figures["steps"]) == (4, 12)
    assert {name for name in figures if name.startswith("loss_at_")} == {
        f"loss_at_{step}" for step in range(5, 13)
    }


def test_taking_over_is_a_function_of_state_and_step(states, go):
    collected, _ = states
    first, _ = go("one", start_step=8, state=collected[8])
    again, _ = go("two", start_step=8, state=collected[8])
    with pytest.raises(Stopped):
        go("three", start_step=8, state=collected[8], should_stop=_stop_after(2))
    resumed, _ = go("three", start_step=8, state=collected[8])
    other, _ = go("four", start_step=4, state=collected[4])
    assert first.read_bytes() == again.read_bytes() == resumed.read_bytes() != other.read_bytes()


def test_who_handed_the_state_out_goes_on_from_its_own_checkpoint(states, go, tmp_path):
    collected, whole = states
    mine = Collector(tmp_path / "mine", tmp_path / "work")
    with pytest.raises(Stopped):
        go(on_state=mine, should_stop=_stop_after(6))
    assert mine.states[4].read_bytes() == collected[4].read_bytes()
    steps = []
    digest = hashlib.sha256(mine.states[4].read_bytes()).hexdigest()
    path, figures = go(start_step=4, digest=digest, should_stop=lambda: bool(steps.append(1)))
    assert len(steps) == 6  # from step 6 on
    assert path.read_bytes() == whole.read_bytes()
    assert (figures["from_step"], figures["steps"]) == (4, 12)


def test_a_lineage_that_was_taken_over_once_goes_on_itself(states, go, tmp_path):
    """Its own start is not at hand any more, and is not needed."""
    collected, _ = states
    undisturbed, _ = go("undisturbed", start_step=4, state=collected[4])
    mine = Collector(tmp_path / "mine", tmp_path / "work")
    with pytest.raises(Stopped):
        go(start_step=4, state=collected[4], on_state=mine, should_stop=_stop_after(5))
    assert list(mine.states) == [8]
    path, _ = go(start_step=8, state=mine.states[8])
    assert path.read_bytes() == undisturbed.read_bytes()


def test_its_own_checkpoint_counts_also_where_it_is_older_than_the_state(states, go, tmp_path):
    """As after kill -9: a few steps are done again, and the expert is the undisturbed one."""
    _, whole = states
    mine = Collector(tmp_path / "mine", tmp_path / "work")
    for steps in (6, 3):
        with pytest.raises(Stopped):
            go(on_state=mine, should_stop=_stop_after(steps))
    (tmp_path / "work/checkpoints/step-0000000009/state.safetensors").write_bytes(b"")
    told = []
    digest = hashlib.sha256(mine.states[8].read_bytes()).hexdigest()
    path, _ = go(start_step=8, digest=digest, on_state=lambda step, path: told.append(step))
    assert path.read_bytes() == whole.read_bytes()
    assert told == []  # what is known already does not go out again


@pytest.mark.parametrize("stop_at", [7, 9])
def test_checkpoints_of_another_lineage_are_not_used(states, go, tmp_path, stop_at):
    collected, _ = states
    mine = Collector(tmp_path / "mine", tmp_path / "work")
    with pytest.raises(Stopped):
        go(on_state=mine, should_stop=_stop_after(stop_at))
    other = tmp_path / "other.safetensors"  # not what came out of this folder's training
    weights = bytearray(collected[8].read_bytes())
    weights[-1] ^= 1
    other.write_bytes(weights)
    expected, _ = go("expected", start_step=8, state=other)
    path, _ = go(start_step=8, state=other)
    assert path.read_bytes() == expected.read_bytes()
    lineage = read_lineage(tmp_path / "work")
    assert lineage is not None
    assert (lineage.start.step, lineage.handed_out) == (8, {})


def test_damaged_checkpoints_of_ones_own_give_way_to_the_state(states, go, tmp_path):
    collected, _ = states
    expected, _ = go("expected", start_step=4, state=collected[4])
    with pytest.raises(Stopped):
        go(on_state=Collector(tmp_path / "m", tmp_path / "work"), should_stop=_stop_after(6))
    for file in tmp_path.glob("work/checkpoints/*/state.safetensors"):
        file.write_bytes(b"")
    path, _ = go(start_step=4, state=collected[4])
    assert path.read_bytes() == expected.read_bytes()


def test_a_checkpoint_that_is_gone_when_it_is_read_is_an_error_not_another_start(
    states, go, tmp_path, monkeypatch
):
    with pytest.raises(Stopped):
        go(on_state=Collector(tmp_path / "m", tmp_path / "work"), should_stop=_stop_after(6))
    monkeypatch.setattr(lineages, "newest_step", lambda folder, run: 6)
    for file in tmp_path.glob("work/checkpoints/*/state.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(WorldError, match="can't be read any more"):
        go(start_step=4, state=states[0][4])


@pytest.mark.parametrize(("start_step", "has_state"), [(4, False), (12, True), (-1, True)])
def test_a_start_that_makes_no_sense_is_said(states, go, start_step, has_state):
    state = states[0][4] if has_state else None
    with pytest.raises(Malformed, match=f"can't go on at step {start_step} of 12"):
        go("odd", start_step=start_step, state=state)


def test_the_ramp_is_a_hundredth_of_what_is_left_within_bounds(make_run):
    manifest = make_run(expert={"steps": 256_000})
    ramps = [
        expert_plan(manifest, torch.device("cpu"), 48, start_step=start).ramp_steps
        for start in (0, 1000, 251_000, 255_000, 255_900, 255_990)
    ]
    assert ramps == [0, 100, 50, 10, 5, 2]


@pytest.mark.parametrize("capacity", ["throughput", [3.0, 1.0]])
def test_steps_follow_the_share_where_shares_differ(make_run, corpus, tmp_path, capacity):
    manifest = make_run(assignment={"capacity": capacity})
    plans = [expert_plan(manifest, torch.device("cpu"), count) for count in (72, 24, 48, 1)]
    assert [plan.steps for plan in plans] == [18, 6, 12, 1]
    assert [plan.optimizer.warmup_steps for plan in plans] == [2, 1, 2, 0]
    _, figures = train_expert(manifest, corpus, 0, np.arange(24), None, tmp_path)
    assert figures["steps"] == 6


def test_with_equal_shares_all_take_the_configured_steps(make_run):
    for count in (47, 48, 90):
        assert expert_plan(make_run(), torch.device("cpu"), count).steps == 12
