"""A node's speed, by which nodes are compared, is that of router rounds, and outlives a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from smalltalk_node.records import NodeStatus, Records


def begin(folder: Path) -> Records:
    """A process's records."""
    return Records(folder, NodeStatus("n-1", "one"))


def test_only_router_rounds_count_as_the_speed_to_be_compared_by(tmp_path: Path) -> None:
    records = begin(tmp_path)
    records.speed("router_round/0/1", {"tokens_per_s": 900.0})
    records.speed("train_expert/0", {"tokens_per_s": 30.0})
    assert records.status.router_tokens_per_s == 900.0
    assert records.status.tokens_per_s == 30.0
    records.speed("router_round/0/2", {"loss": 1.0})  # says nothing of its speed
    assert records.status.router_tokens_per_s == 900.0


def test_the_next_process_knows_it(tmp_path: Path) -> None:
    records = begin(tmp_path)
    records.speed("router_round/0/1", {"tokens_per_s": 900.0})
    records.write_status(at_once=True)
    assert begin(tmp_path).status.router_tokens_per_s == 900.0


@pytest.mark.parametrize("text", ["", "[]", '{"router_tokens_per_s": "fast"}', "{half"])
def test_a_status_file_that_can_not_be_read_is_no_speed(tmp_path: Path, text: str) -> None:
    (tmp_path / "node-status.json").write_text(text)
    assert begin(tmp_path).status.router_tokens_per_s == 0.0
