"""The operator's commands: what they print, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from smalltalk_node import cli
from smalltalk_node.doctor import Finding, examine
from support.loopback_coordinator import Served
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.telemetry.console import run_program
from smalltalk_fed.wire.token import encode_token
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.identity import NodeFolder


def command(*arguments: object) -> int:
    return run_program(cli.app, cli.NAME, [str(argument) for argument in arguments])


def findings(folder: NodeFolder, corpus: Path | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(folder, corpus)}


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking torch for devices takes seconds to import; one test below does."""
    monkeypatch.setattr(machine, "exact_devices", lambda: ["cpu"])


# ---------------------------------------------------------------------------------- doctor


def test_all_is_well(served: Served, tmp_path: Path) -> None:
    folder = served.node_folder(tmp_path / "node")
    corpus = write_tiny_corpus(tmp_path / "corpus")
    folder.file("manifest.json").write_bytes(tiny_manifest(corpus).to_bytes())
    found = findings(folder, corpus.folder)
    assert {f.check: f.verdict for f in found.values() if f.verdict != "ok"} == {}
    assert set(found) == {
        "program", "torch", "limits", "machine", "disk", "corpus", "run", "certificate",
        "enrolment port", "clock", "run port",
    }  # fmt: skip
    assert corpus.digest[:12] in found["corpus"].text


def test_a_clock_that_is_an_hour_behind_is_said(served: Served, tmp_path: Path) -> None:
    served.loopback.behaviour.clock_s = 3600.0
    clock = findings(served.node_folder(tmp_path))["clock"]
    assert clock.verdict == "warn"
    assert "behind the coordinator's" in clock.text
    served.loopback.behaviour.clock_s = -3600.0
    assert "ahead of" in findings(served.node_folder(tmp_path))["clock"].text


def test_another_corpus_than_the_runs_is_said(served: Served, tmp_path: Path) -> None:
    folder = served.node_folder(tmp_path / "node")
    corpus, other = write_tiny_corpus(tmp_path / "a"), write_tiny_corpus(tmp_path / "b", seed=2)
    folder.file("manifest.json").write_bytes(tiny_manifest(other).to_bytes())
    found = findings(folder, corpus.folder)["corpus"]
    assert (found.verdict, found.exit_code) == ("fail", 2)
    assert other.digest[:12] in found.text
    assert findings(folder, tmp_path)["corpus"].verdict == "fail"  # no corpus at all


def test_an_unwelcome_certificate_is_said_with_the_reason(served: Served, tmp_path: Path) -> None:
    served.loopback.behaviour.explanation = "node n-1 was shut out: stolen"
    found = findings(served.node_folder(tmp_path))["enrolment port"]
    assert (found.verdict, found.exit_code) == ("fail", 3)
    assert "stolen" in found.text


def test_a_coordinator_that_is_away_is_said_for_both_ports(served: Served, tmp_path: Path) -> None:
    folder = served.node_folder(tmp_path)
    for server in served.servers:
        server.stop(0).wait()
    found = findings(folder)
    assert found["enrolment port"].exit_code == found["run port"].exit_code == 4
    assert "clock" not in found


def test_a_certificate_near_its_end_is_said(served: Served, tmp_path: Path) -> None:
    assert "renews" in findings(served.node_folder(tmp_path / "a", days=3))["certificate"].text
    ended = findings(served.node_folder(tmp_path / "b", days=-0.5))["certificate"]
    assert ended.verdict == "warn"
    assert "ended" in ended.text


def test_missing_torch_is_said(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: "")
    assert "smalltalk-fed[node]" in findings(served.node_folder(tmp_path))["torch"].text


def test_doctor_as_json_ends_with_the_code_of_what_failed(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.node_folder(tmp_path)
    assert command("doctor", "--dir", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["check"] for row in found} >= {"run port", "clock"}
    served.loopback.behaviour.explanation = "shut out"
    assert command("doctor", "--dir", tmp_path) == 3
    assert "shut out" in " ".join(capsys.readouterr().out.split())


def test_doctor_of_a_folder_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("doctor", "--dir", tmp_path) == 0
    assert "smalltalk-node join TOKEN" in " ".join(capsys.readouterr().out.split())


# -------------------------------------------------------------------------------- commands


def test_join_enrols_and_says_what_is_next(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "node"
    line = encode_token(served.token())
    assert command("join", line, "--dir", folder, "--name", "attic") == 0
    out = capsys.readouterr().out
    assert NodeFolder.open(folder).identity().node_id in out
    assert f"smalltalk-node run --dir {folder}" in out
    assert command("join", line, "--dir", folder) == 2
    assert "already" in capsys.readouterr().err


def test_join_names_the_machine_if_nobody_does(served: Served, tmp_path: Path) -> None:
    assert command("join", encode_token(served.token()), "--dir", tmp_path / "node") == 0
    name = NodeFolder.open(tmp_path / "node").identity().name
    assert name == machine.machine_name()


@pytest.mark.parametrize("host", ["box.example.org", "my box!", "-x-", "ünï", "", "a" * 99])
def test_a_host_name_becomes_a_name_that_the_coordinator_takes(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", machine.machine_name())


def test_mistakes_are_one_sentence_and_a_code(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.node_folder(tmp_path / "enrolled")
    line = encode_token(served.token(b"f" * 16))
    away = encode_token(replace(served.token(), enrolment_address="127.0.0.1:1"))
    for code, word, arguments in (
        (2, "join token", ("join", "rubbish", "--dir", tmp_path / "n")),
        (3, "not made by this run", ("join", line, "--dir", tmp_path / "n")),
        (4, "no coordinator answers", ("join", away, "--dir", tmp_path / "n")),
        (2, "belongs to no run", ("run", "--dir", tmp_path / "n")),
        (2, "--corpus", ("run", "--dir", tmp_path / "enrolled")),
        (2, "does not exist", ("run", "--dir", tmp_path / "enrolled", "--corpus", "/nowhere")),
    ):
        assert command(*arguments) == code, arguments
        err = capsys.readouterr().err
        assert word in err
        assert err.startswith("smalltalk-node: ")
        assert err.count("\n") == 1


def test_egress_is_explained_before_and_after_joining(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--explain-egress", "--dir", tmp_path, "--json") == 0
    before = {(row["call"], row["field"]): row for row in json.loads(capsys.readouterr().out)}
    assert "2 bytes a sequence" in before["PutBlob", "data: scores"]["size"]
    manifest = tiny_manifest(write_tiny_corpus(tmp_path / "c"), expert={"collect": "never"})
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    assert command("--explain-egress", "--dir", tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "at most 144 bytes in this run" in text
    assert "never in this run" in text


def test_the_program_without_arguments_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 2
    assert "--explain-egress" in capsys.readouterr().out
    assert command("--version") == 0


def test_torch_waits_until_there_is_work() -> None:
    program = (
        "import sys, smalltalk_node.cli, smalltalk_node.program, smalltalk_node.doctor\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import os; assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_worker_in_the_middle_of_a_step_does_not_hold_the_end_up() -> None:
    program = (
        "import sys, threading, smalltalk_node.cli as cli\n"
        "busy = threading.Thread(target=threading.Event().wait, name=cli.WORKER_THREAD)\n"
        "busy.start()  # not a daemon: an ordinary end would wait for it for ever\n"
        "sys.argv = ['smalltalk-node', 'join', 'rubbish']\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "not a join token" in done.stderr
