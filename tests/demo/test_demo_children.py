"""No child outlives the demonstration, and a failing one is reported with its last words."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest

from smalltalk_fed.demo import children as module
from smalltalk_fed.demo.children import Child, Children, program, tail
from smalltalk_fed.demo.watching import StatusStream, wait_for_line
from smalltalk_fed.errors import WorldError

READY_THEN_WAIT = "import signal; print('serving now', flush=True); signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(child: Child) -> bool:
    try:
        os.killpg(child.process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_run_returns_what_was_printed_and_logs_the_rest(tmp_path: Path) -> None:
    code = "import sys; print('answer'); print('remark', file=sys.stderr)"
    with Children(tmp_path) as children:
        assert children.run("one", python(code)) == "answer\n"
    assert (tmp_path / "one.log").read_text() == "remark\n"


def test_a_failing_program_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; [print('line', i, file=sys.stderr) for i in range(99)]; sys.exit(3)"
    with Children(tmp_path) as children, pytest.raises(WorldError) as caught:
        children.run("node-1", python(code))
    message = str(caught.value)
    assert message.startswith("node-1 ended with exit code 3.")
    assert "line 98" in message
    assert "line 80" not in message


def test_leaving_ends_what_runs_even_what_ignores_a_polite_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_S", 0.4)
    deaf = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + READY_THEN_WAIT
    )
    started: list[Child] = []

    def interrupted_at_work() -> None:
        with Children(tmp_path) as children:
            started.append(children.start("polite", python(READY_THEN_WAIT)))
            started.append(children.start("deaf", python(deaf)))
            for child in started:
                wait_for_line(child, "serving now", 20.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_at_work()
    assert all(gone(child) for child in started)
    assert started[0].process.returncode == -signal.SIGINT  # asked, and had time to tidy up
    assert started[1].process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("session", [False, True], ids=["in its group", "in another session"])
def test_a_grandchild_ends_with_its_parent(tmp_path: Path, session: bool) -> None:
    lock = tmp_path / "lock"
    holder = (
        f"import fcntl, signal; file = open({str(lock)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('serving now', flush=True); signal.pause()"
    )
    code = (
        "import signal, subprocess, sys;"
        f"subprocess.Popen([sys.executable, '-c', {holder!r}], start_new_session={session});"
        "signal.pause()"
    )
    with Children(tmp_path) as children:
        child = children.start("parent", python(code))
        wait_for_line(child, "serving now", 20.0)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for ever if the holder lives on


def test_a_watched_child_that_dies_stops_the_waiting(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        dead = children.start("coordinator", python("raise SystemExit(4)"))
        dead.process.wait()
        with pytest.raises(WorldError, match="coordinator ended with exit code 4"):
            children.run("invite", python("import signal; signal.pause()"), watch=[dead])


def test_waiting_for_a_line_ends_when_the_program_does(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("coordinator", python("print('no')"))
        with pytest.raises(WorldError, match="did not start"):
            wait_for_line(child, "serving", 20.0)


def test_the_stream_gives_the_newest_status_and_reports_a_dead_node(tmp_path: Path) -> None:
    code = "import json, signal;print(json.dumps({'phase': 'routing'}), flush=True); signal.pause()"
    with Children(tmp_path) as children:
        stream = StatusStream(children, python(code))
        assert stream.next() == {"phase": "routing"}
        node = children.start("node-2", python("raise SystemExit(1)"))
        node.process.wait()
        with pytest.raises(WorldError, match="node-2 ended"):
            stream.next()
        stream.close()


def test_a_program_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(WorldError, match="smalltalk-node is not installed"):
        program("smalltalk-node")


def test_an_empty_log_is_said_to_be_empty(tmp_path: Path) -> None:
    assert "is empty" in tail(tmp_path / "none.log")
