"""A run whose experts stay with their nodes: federated generation, withdrawal, what leaves.

Programs as their users start them. Where they answer from home must make no difference: the same
experts copied into the mixture give the same text.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.deployment import (
    BIN,
    ENV,
    SMALL_RUN,
    WAIT_S,
    Deployment,
    command,
    deployment,
    good,
    wait_for,
)

from smalltalk_fed.wire.egress_record import read_record

pytestmark = pytest.mark.slow  # a whole run, and two dozen commands

NODES = ("anna", "berta")
PROMPTS = (
    "def main(argument):\n    return argument",
    "And it came to pass in those days that the word of the king went out to all the land,",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> Iterator[Deployment]:
    """Finished; the coordinator still serves, and both nodes serve their experts."""
    folder = tmp_path_factory.mktemp("home")
    settings = {**SMALL_RUN, "expert.collect": "never", "run.nodes_to_start": 2}
    with deployment(folder, small_corpus, settings) as run:
        run.init()
        run.serve()
        for name in NODES:
            run.join(name)
            run.node(name)
        run.wait_phase("finished")
        for name in NODES:
            assert run.children.pop(name).wait(WAIT_S) == 0, run.log(name)
        for name in NODES:
            serve(run, name)
        wait_for(lambda: len(run.glance()["serving_experts"]) == 2, "both to serve")
        yield run


def record(run: Deployment, name: str) -> Path:
    return run.folder / f"{name}.egress"


def serve(run: Deployment, name: str) -> None:
    run.start(
        name, "smalltalk-node", "serve-experts", "--dir", run.folder / name,
        "--record-egress", record(run, name),
    )  # fmt: skip


def generate_command(run: Deployment, *more: object) -> list[object]:
    return [
        run.run / "mixture", "--federated", "--run", run.run, "--seed", 3, "--threads", 1,
        "--device", "cpu", *more,
    ]  # fmt: skip


def federated(run: Deployment, prompts: tuple[str, ...] = PROMPTS) -> list[dict[str, Any]]:
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    said = good("smalltalk", "generate", *generate_command(run, "--tokens", 12, "--json", *options))
    return [json.loads(line) for line in said.splitlines()]


def owner(run: Deployment, expert: int) -> str:
    """The name of the node that has it."""
    node_id = run.status()["experts_done"][expert]["node_id"]
    (name,) = [n["name"] for n in run.status()["nodes"] if n["node_id"] == node_id]
    return str(name)


def whole_mixture(run: Deployment, place: Path) -> Path:
    """The mixture, and the experts out of their nodes' folders."""
    whole = place / "mixture"
    shutil.copytree(run.run / "mixture", whole)
    run_id = run.status()["run_id"]
    for expert in range(2):
        home = run.folder / owner(run, expert) / "experts" / run_id / str(expert)
        shutil.copytree(home, whole / "experts" / str(expert))
    return whole


def test_the_mixture_has_no_weights_and_can_only_be_asked_federated(run: Deployment) -> None:
    assert not list((run.run / "mixture" / "experts").iterdir())
    shares = json.loads((run.run / "mixture" / "mixture.json").read_text())["experts"]
    assert {entry["share"] for entry in shares} == {"never"}
    alone = command("smalltalk", "generate", run.run / "mixture", "--prompt", "x")
    assert alone.returncode == 2
    assert "generate --federated --run RUN" in alone.stderr


def test_the_text_is_that_of_the_same_experts_in_one_place(run: Deployment, tmp_path: Path) -> None:
    whole = whole_mixture(run, tmp_path)
    options = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    here = good(
        "smalltalk", "generate", whole, "--seed", 3, "--threads", 1, "--device", "cpu",
        "--tokens", 12, "--json", *options,
    )  # fmt: skip
    found = federated(run)
    for relayed, alone in zip(found, map(json.loads, here.splitlines()), strict=True):
        assert relayed.pop("node_name") == owner(run, relayed["expert"])
        assert relayed.pop("node").startswith("n-")
        assert relayed == alone


def test_the_perplexity_is_that_of_the_same_experts_in_one_place(
    run: Deployment, tmp_path: Path
) -> None:
    place = ("--corpus", run.corpus, "--threads", 1, "--device", "cpu", "--json")
    found = json.loads(
        good("smalltalk", "evaluate", run.run / "mixture", "--federated", "--run", run.run, *place)
    )
    here = json.loads(good("smalltalk", "evaluate", whole_mixture(run, tmp_path), *place))
    for name in ("suffix_ppl", "all_ppl"):
        assert found["mixture"][name] == pytest.approx(here["mixture"][name], rel=1e-6)
    for rows in ("experts", "domains"):
        assert [row["suffix_ppl"] for row in found[rows]] == [
            pytest.approx(row["suffix_ppl"], rel=1e-6) if row["suffix_ppl"] else None
            for row in here[rows]
        ]


def test_it_says_who_answered(run: Deployment) -> None:
    done = command(
        "smalltalk", "generate", *generate_command(run, "--tokens", 4, "--prompt", PROMPTS[0])
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPTS[0])
    assert "answers]" in done.stderr
    shown = good("smalltalk-coordinator", "status", run.run)
    assert "expert 0 answers at n-" in shown


def test_only_declared_messages_leave_and_the_prompt_is_in_none(run: Deployment) -> None:
    federated(run)
    for name in NODES:
        said = good("smalltalk-node", "egress", record(run, name), "--dir", run.folder / name)
        assert "All of it declared." in said
    for name in NODES:
        calls = {sent.call for sent in read_record(record(run, name))}
        said = run.log(name).rpartition("the run is finished")[2]  # since it serves
        asked_why = "no coordinator answers at" in said
        assert calls == ({"Serve", "Explain"} if asked_why else {"Serve"}), said


def test_a_node_that_vanishes_in_the_middle_is_one_clear_sentence(run: Deployment) -> None:
    (first,) = federated(run, PROMPTS[:1])
    name = owner(run, first["expert"])
    run.children[name].send_signal(signal.SIGSTOP)  # it has the prompt and does not answer
    asked = subprocess.Popen(
        [str(part) for part in (
            BIN / "smalltalk", "generate", *generate_command(run, "--prompt", PROMPTS[0]),
        )],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip
    try:
        wait_for(lambda: run.glance()["prompts_waiting"] == 1, "the prompt to be there")
        run.kill(name)
        _, said = asked.communicate(timeout=WAIT_S)
    finally:
        asked.kill()
    assert asked.returncode == 4
    (sentence,) = said.strip().splitlines()
    assert f"expert {first['expert']} was chosen: node n-" in sentence
    assert f"('{name}') went away before it had answered" in sentence
    again = command("smalltalk", "generate", *generate_command(run, "--prompt", PROMPTS[0]))
    assert again.returncode == 3
    assert f"no node serves expert {first['expert']} now" in again.stderr
    serve(run, name)
    wait_for(lambda: len(run.glance()["serving_experts"]) == 2, "it to serve again")
    assert federated(run, PROMPTS[:1]) == [first]


def test_an_owner_withdraws_its_experts_and_the_mixture_goes_on_without(run: Deployment) -> None:
    """The last of these: the run has one expert less from here on."""
    before = {each["prompt"]: each for each in federated(run)}
    gone = owner(run, 0)
    asked = subprocess.run(
        [str(BIN / "smalltalk-node"), "withdraw", "--dir", str(run.folder / gone)],
        input="n\n", capture_output=True, text=True, env=ENV, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert asked.returncode != 0
    assert run.status()["withdrawn"] == []
    place = ("--dir", run.folder / gone, "--yes", "--reason", "ours again")
    assert good("smalltalk-node", "withdraw", *place) == "expert 0 left the mixture"
    manifest = run.run / "mixture" / "mixture.json"

    def entry() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(manifest.read_text())["experts"][0]
        return found

    wait_for(lambda: entry()["withdrawn"], "the mixture to be written again")
    assert entry()["withdrawn"] == "ours again"
    wait_for(
        lambda: not (run.run / "mixture" / "routers" / "0.safetensors").exists(), "its router to go"
    )
    (said,) = run.status()["withdrawn"]
    assert (said["expert"], said["by"], said["reason"]) == (0, "owner", "ours again")
    assert "expert 0 of n-" in good("smalltalk-coordinator", "status", run.run)
    for after in federated(run):
        assert after["expert"] == 1
        assert after["scores"][0] is None
        was = before[after["prompt"]]
        assert after["scores"][1] == was["scores"][1]
        if was["expert"] == 1:
            assert after["text"] == was["text"]
    proved = good("smalltalk-coordinator", "status", run.run, "--audit-data")
    assert "wrong" in proved
