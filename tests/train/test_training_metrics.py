"""Metrics as JSON lines, and TensorBoard where it is."""

import sys
import types

from smalltalk_fed.train.metrics import METRICS_FILE, MetricsWriter, read_metrics


def test_lines_are_whole_at_once_and_a_second_run_appends(tmp_path):
    with MetricsWriter(tmp_path / "expert-0") as metrics:
        metrics.write(10, {"loss": 2.5})
        assert [line["loss"] for line in read_metrics(tmp_path / "expert-0")] == [2.5]
    with MetricsWriter(tmp_path / "expert-0") as metrics:
        metrics.write(20, {"loss": 1.5, "tokens_per_s": 7.0})
    lines = read_metrics(tmp_path / "expert-0")
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 2.5), (20, 1.5)]
    assert lines[1]["tokens_per_s"] == 7.0
    assert lines[0]["unix_s"] > 0


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\n{"ste')
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "nothing") == []


def test_tensorboard_gets_the_same_figures_where_it_is_installed(tmp_path, monkeypatch):
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, name, value, step):
            seen.append((name, value, step))

        def close(self):
            seen.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(3, {"loss": 1.0})
    assert seen == [str(tmp_path), ("loss", 1.0, 3), "closed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(4, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 2
