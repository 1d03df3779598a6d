"""The organiser's commands on a run folder that nobody serves, and what a table shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from smalltalk_coordinator import tables
from smalltalk_coordinator.cli import NAME, app
from support.core_world import FakeNode, World, make_manifest
from support.tiny_run import LENGTH, write_tiny_corpus

from smalltalk_fed.core import messages as msg
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.offline import decide_offline
from smalltalk_fed.host.status import run_status
from smalltalk_fed.telemetry.console import run_program
from smalltalk_fed.wire.token import decode_token, secret_sha256

Run = Callable[..., int]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: run_program(app, NAME, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> Path:
    corpus = write_tiny_corpus(tmp_path / "corpus").folder
    code = run(
        "init", tmp_path / "run", "--corpus", corpus, "--set", f"sequence.length={LENGTH}",
        "--set", "sequence.prefix=4", "--run-address", "127.0.0.1:1", "--enrol-address",
        "127.0.0.1:2", "--set", "run.experts=2",
    )  # fmt: skip
    assert code == 0
    return tmp_path / "run"


def test_keys_are_only_the_owners(folder: Path) -> None:
    for name in ("authority/ca.key", "operator/key.pem", "signing.key"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name


def test_an_invitation_works_before_the_first_serve(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("invite", folder, "--name", "for Ada") == 0
    token = decode_token(capsys.readouterr().out)
    assert (token.run_address, token.enrolment_address) == ("127.0.0.1:1", "127.0.0.1:2")
    assert run("status", folder, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["serving"] is False
    assert [(i["name"], i["used"]) for i in status["invites"]] == [("for Ada", 0)]
    assert run("invite", folder, "--cancel", status["invites"][0]["id"]) == 0


def test_invitations_are_listed_without_their_secrets(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert run("invite", folder, "--name", "for Ada [lab]", "--uses", "3", "--hours", "2") == 0
    secret = decode_token(capsys.readouterr().out).secret
    assert run("invite", folder, "--hours", "1") == 0
    capsys.readouterr()
    run_folder = RunFolder.open(folder)
    enrol = msg.Enrol(secret_sha256(secret), "ab" * 32, "box")
    answer = decide_offline(run_folder, enrol, SystemClock())
    assert isinstance(answer, msg.Enrolled)

    assert run("invite", folder, "--list", "--json") == 0
    printed = capsys.readouterr().out
    ada, other = json.loads(printed)
    assert ada["id"] == secret_sha256(secret)[:8]
    assert (ada["name"], ada["uses"], ada["uses_left"]) == ("for Ada [lab]", 3, 2)
    assert ada["used_by"] == [answer.node_id]
    assert (other["uses_left"], other["used_by"], other["expired"]) == (1, [], False)
    for text in (secret.hex(), secret_sha256(secret)):
        assert text not in printed

    assert run("invite", folder, "--cancel", other["id"]) == 0
    capsys.readouterr()
    assert run("invite", folder, "--list") == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "for Ada [lab] 2 of 3" in table
    assert answer.node_id in table
    assert "cancelled" in table


def test_no_invitations_are_listed_too(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("invite", folder, "--list") == 0
    assert "no invitations yet" in capsys.readouterr().out
    assert run("invite", folder, "--list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_addresses_are_added_and_removed_and_a_token_has_the_first(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "[::1]:1/vm.example.org:2"
    assert run("addresses", folder, "--add", more) == 0
    assert capsys.readouterr().out.split() == ["127.0.0.1:1/127.0.0.1:2", more]
    assert run("addresses", folder, "--remove", "127.0.0.1:1/127.0.0.1:2", "--json") == 0
    pair = {"run": "[::1]:1", "enrolment": "vm.example.org:2"}
    assert json.loads(capsys.readouterr().out) == [pair]
    assert run("invite", folder) == 0
    token = decode_token(capsys.readouterr().out)
    assert (token.run_address, token.enrolment_address) == (pair["run"], pair["enrolment"])


def test_a_run_is_made_with_several_addresses(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    new, corpus = folder.parent / "new", folder.parent / "corpus"
    wanted = ("--run-address", "a:1", "--enrol-address", "a:2")
    wanted += ("--run-address", "b:1", "--enrol-address", "b:2")
    tiny = ("--set", f"sequence.length={LENGTH}", "--set", "sequence.prefix=4")
    assert run("init", new, "--corpus", corpus, *wanted, *tiny) == 0
    capsys.readouterr()
    assert run("addresses", new) == 0
    assert capsys.readouterr().out.split() == ["a:1/a:2", "b:1/b:2"]


def test_an_operators_key_that_others_can_read_is_refused(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "operator" / "key.pem").chmod(0o644)
    assert run("status", folder) == 2
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("status", "nothing-here"), 2, "is not a run folder"),
        (("init", "RUN", "--corpus", "CORPUS"), 2, "is not empty"),
        (("init", "NEW", "--corpus", "nothing-here"), 2, "is not a corpus"),
        (("init", "NEW", "--corpus", "CORPUS", "--run-address", "here"), 2, "host:port"),
        (("revoke", "RUN", "n-nobody"), 3, "no node is called"),
        (("resume", "RUN"), 3, "can't be resumed"),
        (("invite", "RUN", "--list", "--cancel", "ab"), 2, "two commands"),
        (("invite", "RUN", "--json"), 2, "--list"),
        (("invite", "RUN", "--cancel", "ab"), 3, "fits 0 invitations"),
        (("addresses", "RUN", "--add", "a:1"), 2, "HOST:PORT/HOST:PORT"),
        (("addresses", "RUN", "--remove", "a:1/a:2"), 2, "not an address of this run"),
        (
            ("init", "NEW", "--corpus", "CORPUS", "--run-address", "a:1", "--run-address", "b:1"),
            2,
            "as many of the one",
        ),
        (("export", "RUN", "--assignments", "a.npz"), 2, "has not begun"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    places = {"RUN": folder, "NEW": folder.parent / "new", "CORPUS": folder.parent / "corpus"}
    capsys.readouterr()
    assert run(*(places.get(part, part) for part in arguments)) == code
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (folder.parent / "new").exists()


def test_a_folder_that_others_can_write_to_is_refused(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.chmod(0o777)
    assert run("status", folder) == 2
    assert "others can write" in capsys.readouterr().err


def test_the_table_shows_who_does_what() -> None:
    world = World(make_manifest())
    busy, idle = (FakeNode(world, name).enrol().join() for name in ("busy", "idle"))
    busy.poll()
    busy.beat(0.4)
    idle.poll()
    status = run_status(world.coordinator, world.now)
    totals = {f"{c}_{d}": 1_000_000 for c in ("coordination", "weights") for d in ("up", "down")}
    out = io.StringIO()
    shown = tables.render({**status, "bytes": totals, "mixture": None, "serving": True})
    Console(file=out, width=120).print(shown)
    text = out.getvalue()
    for part in (
        "routing",
        "round 1 of 2, 2 experts; units: 0 done, 2 in work",
        "router_round/0/1",
        "40%",
        "busy",
        "2.00 MB",
    ):
        assert part in text
