"""The run itself: text, coordinator, nodes, and following them to the mixture.

Rules: nodes read a copy of the corpus that has no labels in it: those are for the report
alone. Times of phases are the coordinator's.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from itertools import pairwise
from typing import Any

from smalltalk_fed.data.corpus import LABELS_FILE, SOURCE_FILE, labels_file
from smalltalk_fed.data.packs import unpack_small
from smalltalk_fed.demo import recipe
from smalltalk_fed.demo.children import Child, Children, program, tail
from smalltalk_fed.demo.live import phase_fraction
from smalltalk_fed.demo.plan import Step
from smalltalk_fed.demo.stage import Stage
from smalltalk_fed.demo.watching import StatusStream, wait_for_line
from smalltalk_fed.errors import WorldError

POLL_S = 1.0
START_S = 60.0
LEAVE_S = 5.0

# Phases of the run that are steps of ours.
_PHASES = {s.value: s for s in (Step.ROUTING, Step.SHARDING, Step.TRAINING, Step.EVALUATING)}


def prepare(stage: Stage, children: Children) -> None:
    """The text pack becomes a corpus, and a copy of it without labels."""
    folder, length = stage.folder, stage.config.sequence.length

    def work() -> str:
        unpack_small(folder.text)
        printed = children.run(
            "prepare",
            [
                *(program("smalltalk"), "prepare", str(folder.text)),
                *("--out", str(folder.corpus), "--sequence-tokens", str(length)),
                *("--vocabulary", str(recipe.VOCABULARY), "--label-field", "domain"),
                *("--split-field", "split", "--json"),
            ],
        )
        summary = json.loads(printed)
        labels = (LABELS_FILE, labels_file("train"), labels_file("heldout"), SOURCE_FILE)
        shutil.copytree(folder.corpus, folder.node_corpus, ignore=shutil.ignore_patterns(*labels))
        return (
            f"{summary['train']['sequences']:,} sequences of {length} tokens to train on, "
            f"{summary['heldout']['sequences']:,} held out"
        )

    stage.step(Step.PREPARE, work)


def enrol(stage: Stage, children: Children) -> tuple[Child, list[Child]]:
    """Make the run, serve it, invite and start the nodes; returns coordinator and nodes."""
    started: list[Child] = []

    def work() -> str:
        coordinator, token = _coordinator(stage, children)
        started.append(coordinator)
        for index in range(1, stage.options.nodes + 1):
            stage.view.update(index / (stage.options.nodes + 1), f"node {index} joins")
            started.append(_node(stage, children, coordinator, token, index))
        return f"{stage.options.nodes} nodes with certificates of their own"

    stage.step(Step.ENROL, work)
    return started[0], started[1:]


def _coordinator(stage: Stage, children: Children) -> tuple[Child, str]:
    """A serving coordinator, and a token for all nodes."""
    command, folder = program("smalltalk-coordinator"), stage.folder
    run, enrolment = free_ports(2)
    children.run(
        "coordinator-init",
        [
            *(command, "init", str(folder.coordinator)),
            *("--config", str(folder.config), "--corpus", str(folder.node_corpus)),
            *("--run-address", f"127.0.0.1:{run}", "--enrol-address", f"127.0.0.1:{enrolment}"),
        ],
    )
    serving = children.start("coordinator", [command, "serve", str(folder.coordinator)])
    wait_for_line(serving, "serving ", START_S)
    token = children.run(
        "coordinator-invite",
        [command, "invite", str(folder.coordinator), "--uses", str(stage.options.nodes)],
        watch=[serving],
    )
    return serving, token.strip()


def _node(stage: Stage, children: Children, coordinator: Child, token: str, index: int) -> Child:
    """Node `index`, enrolled and at work."""
    command, here = program("smalltalk-node"), str(stage.folder.node(index))
    children.run(
        f"node-{index}-join",
        [command, "join", token, "--dir", here, "--name", f"node-{index}"],
        watch=[coordinator],
    )
    corpus = str(stage.folder.node_corpus)
    return children.start(
        f"node-{index}",
        [command, "run", "--dir", here, "--device", "cpu", "--corpus", corpus],
    )


def watch(stage: Stage, children: Children, coordinator: Child, nodes: list[Child]) -> None:
    """Follow the run through its phases until it is finished and its mixture lies there.

    Raises:
        WorldError: the run or a program failed, or all nodes left.
    """
    command = [program("smalltalk-coordinator"), "status", str(stage.folder.coordinator)]
    stream = StatusStream(children, [*command, "--json", "--watch", "--every-s", str(POLL_S)])
    shown: Step | None = None
    while True:
        all_left = all(node.ended for node in nodes)  # asked before the status is
        status = stream.next()
        phase = status["phase"]
        here = _PHASES.get(phase)
        if here is not shown:
            if shown is not None:
                stage.view.end(_said(shown, status))
            if here is not None:
                stage.view.begin(here)
            shown = here
        if phase in ("failed", "paused"):
            raise WorldError(f"the run stopped: {status['reason']}.{tail(coordinator.log)}")
        if phase == "finished" and status.get("mixture"):
            break
        if all_left and phase != "finished":
            raise WorldError(f"all nodes left before the end.{tail(nodes[0].log)}")
        stage.view.update(phase_fraction(status), _detail(status), status)
    stream.close()
    began = status["phase_started"]
    for phase, after in pairwise([*_PHASES, "finished"]):
        if phase in began and after in began:
            stage.note(phase, began[phase], began[after])


def collect(stage: Stage, children: Children, coordinator: Child, nodes: list[Child]) -> None:
    """Let nodes and coordinator go, and take the mixture and all assignments."""
    folder, command = stage.folder, program("smalltalk-coordinator")

    def work() -> str:
        for node in nodes:  # they end by themselves once the run is over
            end = time.monotonic() + LEAVE_S
            while not node.ended and time.monotonic() < end:
                time.sleep(0.1)
            children.end(node)
        asked = [command, "status", str(folder.coordinator), "--json"]
        # Once more, with the last bytes and seconds.
        status: dict[str, Any] = json.loads(children.run("coordinator-status", asked))
        stage.findings.status = status
        children.end(coordinator)
        shutil.copytree(status["mixture"], folder.mixture)
        out = ("--assignments", str(folder.assignments))
        children.run("coordinator-export", [command, "export", str(folder.coordinator), *out])
        return str(folder.mixture)

    stage.step(Step.COLLECT, work)


def free_ports(count: int) -> list[int]:
    """Different ports of loopback that nobody uses at the moment."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _detail(status: dict[str, Any]) -> str:
    """How far the phase is, in words."""
    if status.get("phase") == Step.ROUTING:
        return f"round {status.get('round', 0)} of {status.get('rounds', 0)}"
    units = status.get("units") or {}
    total = sum(units.get(name, 0) for name in ("open", "leased", "finished"))
    return f"{units.get('finished', 0)} of {total} units done"


def _said(step: Step, status: dict[str, Any]) -> str:
    """What came of a phase."""
    match step:
        case Step.ROUTING:
            return f"{status.get('rounds')} rounds"
        case Step.SHARDING if "displaced_fraction" in (status.get("shards") or {}):
            return f"{status['shards']['displaced_fraction']:.1%} not with their favourite"
        case Step.TRAINING:
            done = status.get("experts_done") or []
            return f"{sum(row.get('tokens', 0) for row in done) / 1e6:.1f}M tokens"
        case _:
            return ""
