"""Log lines: facts beside the message, one JSON object a line, stdout left alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from smalltalk_fed.telemetry import logs


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_message_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(as_json=True)
    logs.get_logger("node").info("unit %s done", "shard/1", extra={"facts": {"bytes": 7}})
    out, err = capsys.readouterr()
    assert out == ""
    line = json.loads(err)
    assert (line["message"], line["bytes"], line["part"]) == ("unit shard/1 done", 7, "node")
    assert line["level"] == "info"


def test_json_lines_carry_tracebacks_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(as_json=True)
    try:
        raise ValueError("odd")
    except ValueError:
        logs.get_logger("node").exception("failed")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ValueError: odd" in json.loads(err)["error"]


def test_people_see_facts_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    logs.get_logger("node").info("joined", extra={"facts": {"node": "n-1", "round": 2}})
    assert capsys.readouterr().err.rstrip().endswith("INFO    joined  node=n-1 round=2")


def test_debug_is_for_the_verbose_and_other_libraries_are_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up(as_json=True)
    logs.get_logger("node").debug("detail")
    logging.getLogger("other").info("chatter")
    assert capsys.readouterr().err == ""
    logs.set_up(as_json=True, verbose=True)
    logs.get_logger("node").debug("detail")
    assert json.loads(capsys.readouterr().err)["level"] == "debug"
