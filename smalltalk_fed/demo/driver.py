"""The demonstration's steps, one after the other, each by a program's command line.

Rules: programs are child processes and speak mutual-TLS gRPC on loopback, as in a real run;
what is learnt of them comes from what they print (`status --json`) and write. Nodes read a
copy of the corpus that has no labels in it: those are for the report alone. Whatever
happens, Ctrl-C included, no child outlives this process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.data.corpus import LABELS_FILE
from smalltalk_fed.data.packs import unpack_small
from smalltalk_fed.demo import recipe
from smalltalk_fed.demo.children import Child, Children, program, tail
from smalltalk_fed.demo.folder import DemoFolder
from smalltalk_fed.demo.live import DemoView, phase_fraction
from smalltalk_fed.demo.plan import Step, make_plan
from smalltalk_fed.demo.prompts import Prompt, heldout_prompts
from smalltalk_fed.demo.watching import StatusStream, wait_for_line
from smalltalk_fed.errors import WorldError

SAMPLE_TOKENS = 72
SAMPLE_TEMPERATURE = 0.7
POLL_S = 1.0
START_S = 60.0

# Phases of the run that are steps of ours.
_PHASES = {s.value: s for s in (Step.ROUTING, Step.SHARDING, Step.TRAINING, Step.EVALUATING)}


@dataclass(frozen=True)
class DemoOptions:
    """What the person asked for."""

    seed: int = 1
    experts: int = 4
    nodes: int = 4
    preset: recipe.Preset = "full"
    settings: tuple[str, ...] = ()
    command: str = "smalltalk demo"


@dataclass
class Findings:
    """All that the programs said and that the report is made of."""

    options: DemoOptions
    config: RunConfig
    config_toml: str
    status: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[tuple[str, float, float]] = field(default_factory=list)


class Demo:
    """One demonstration in a claimed folder."""

    def __init__(self, folder: DemoFolder, options: DemoOptions, console: Console) -> None:
        self._folder, self._options = folder, options
        text = recipe.run_toml(
            options.preset, options.seed, options.experts, options.nodes, options.settings
        )
        folder.config.write_text(text, encoding="utf-8")
        self._config = recipe.check(folder.config)
        self._findings = Findings(options, self._config, text)
        self._cores = available_cores()
        plan = make_plan(self._config, self._cores, options.nodes)
        self._view = DemoView(console, plan)
        self._started = time.time()

    def run(self) -> Findings:
        """All steps but the drawing of the report.

        Raises:
            WorldError: a program failed; the message ends with the end of its log.
        """
        # A polite end by `kill` is an end like Ctrl-C: the children must not outlive us.
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with Children(self._folder.logs) as children, self._view:
                self._prepare(children)
                coordinator, nodes = self._enrol(children)
                self._watch(children, coordinator, nodes)
                self._collect(children, coordinator, nodes)
                self._baseline(children)
                self._compare(children)
                self._generate(children)
        finally:
            signal.signal(signal.SIGTERM, before)
        return self._findings

    def step(self, step: Step, work: Callable[[], str]) -> None:
        """Do `work` as a step; it returns what to say at its end."""
        self._view.begin(step)
        start = time.time()
        said = work()
        self._findings.timeline.append((step.value, start - self._started, self._now()))
        self._view.end(said)

    # ----------------------------------------------------------------------------- steps

    def _prepare(self, children: Children) -> None:
        folder, length = self._folder, self._config.sequence.length

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
            unlabelled = shutil.ignore_patterns(LABELS_FILE, "*-labels.bin", "source.json")
            shutil.copytree(folder.corpus, folder.node_corpus, ignore=unlabelled)
            return (
                f"{summary['train']['sequences']:,} sequences of {length} tokens to train on, "
                f"{summary['heldout']['sequences']:,} held out"
            )

        self.step(Step.PREPARE, work)

    def _enrol(self, children: Children) -> tuple[Child, list[Child]]:
        folder, found = self._folder, []

        def work() -> str:
            run, enrolment = free_ports(2)
            coordinator = program("smalltalk-coordinator")
            children.run(
                "coordinator-init",
                [
                    *(coordinator, "init", str(folder.coordinator)),
                    *("--config", str(folder.config), "--corpus", str(folder.node_corpus)),
                    *("--run-address", f"127.0.0.1:{run}"),
                    *("--enrol-address", f"127.0.0.1:{enrolment}"),
                ],
            )
            serving = children.start("coordinator", [coordinator, "serve", str(folder.coordinator)])
            found.append(serving)
            wait_for_line(serving, "serving ", START_S)
            token = children.run(
                "coordinator-invite",
                [*(coordinator, "invite", str(folder.coordinator)), "--uses", f"{self._nodes}"],
                watch=[serving],
            ).strip()
            node = program("smalltalk-node")
            for index in range(1, self._nodes + 1):
                self._view.update(index / (self._nodes + 1), f"node {index} joins")
                here = str(folder.node(index))
                children.run(
                    f"node-{index}-join",
                    [*(node, "join", token, "--dir", here, "--name", f"node-{index}")],
                    watch=[serving],
                )
                found.append(
                    children.start(
                        f"node-{index}",
                        [
                            *(node, "run", "--dir", here, "--device", "cpu"),
                            *("--corpus", str(folder.node_corpus)),
                        ],
                    )
                )
            return f"{self._nodes} nodes with certificates of their own"

        self.step(Step.ENROL, work)
        return found[0], found[1:]

    def _watch(self, children: Children, coordinator: Child, nodes: list[Child]) -> None:
        """Follow the run through its phases until it is finished and its mixture lies there."""
        command = [program("smalltalk-coordinator"), "status", str(self._folder.coordinator)]
        stream = StatusStream(children, [*command, "--json", "--watch", "--every-s", f"{POLL_S}"])
        shown: Step | None = None
        while True:
            all_left = all(node.ended for node in nodes)  # asked before the status is
            status = stream.next()
            phase = status["phase"]
            here = _PHASES.get(phase)
            if here is not shown:
                if shown is not None:
                    self._view.end(_said(shown, status))
                if here is not None:
                    self._view.begin(here)
                shown = here
            if phase == "failed":
                raise WorldError(f"the run failed: {status['reason']}.{tail(coordinator.log)}")
            if phase == "finished" and status.get("mixture"):
                break
            if all_left and phase != "finished":
                raise WorldError(f"all nodes left before the end.{tail(nodes[0].log)}")
            self._view.update(phase_fraction(status), _detail(status), status)
        stream.close()
        self._findings.status = status
        began = status["phase_started"]
        for phase, after in pairwise([*_PHASES, "finished"]):
            if phase in began and after in began:  # by the coordinator's clock, which is ours
                span = (began[phase] - self._started, began[after] - self._started)
                self._findings.timeline.append((phase, *span))

    def _collect(self, children: Children, coordinator: Child, nodes: list[Child]) -> None:
        folder = self._folder

        def work() -> str:
            for node in nodes:  # they end by themselves once the run is over
                end = time.monotonic() + 5.0
                while not node.ended and time.monotonic() < end:
                    time.sleep(0.1)
                children.end(node)
            command = program("smalltalk-coordinator")
            asked = children.run(
                "coordinator-status", [command, "status", str(folder.coordinator), "--json"]
            )
            self._findings.status = json.loads(asked)  # with the last bytes and seconds
            children.end(coordinator)
            shutil.copytree(self._findings.status["mixture"], folder.mixture)
            children.run(
                "coordinator-export",
                [
                    *(command, "export", str(folder.coordinator)),
                    *("--assignments", str(folder.assignments)),
                ],
            )
            return str(folder.mixture)

        self.step(Step.COLLECT, work)

    @property
    def _dense_processes(self) -> int:
        """As many as there are cores and as share the dense model's batch out evenly."""
        expert = self._config.expert
        batch = expert.batch_sequences * self._config.run.experts
        return max(n for n in range(1, self._cores + 1) if batch % n == 0)

    def _baseline(self, children: Children) -> None:
        folder = self._folder
        progress = folder.work / "baseline-progress.json"

        def work() -> str:
            child = children.start(
                "baseline",
                [
                    *(program("smalltalk"), "baseline", "--config", str(folder.config)),
                    *("--corpus", str(folder.corpus), "--out", str(folder.dense)),
                    *("--device", "cpu"),
                    *("--threads", "1", "--processes", str(self._dense_processes)),
                    *("--progress-file", str(progress)),
                ],
                {"OMP_NUM_THREADS": "1"},
            )
            while not child.ended:
                time.sleep(0.5)
                now = _read_json(progress)
                if now:
                    steps = max(1, now["steps"])
                    self._view.update(
                        now["step"] / steps,
                        f"step {now['step']} of {steps}, loss {now['loss']:.2f}, "
                        f"{now['tokens_per_s']:,.0f} tokens/s",
                    )
            child.check()
            children.end(child)
            self._findings.baseline = _read_json(folder.dense / "baseline.json") or {}
            return f"{self._findings.baseline.get('tokens', 0) / 1e6:.1f}M tokens"

        self.step(Step.BASELINE, work)

    def _compare(self, children: Children) -> None:
        folder = self._folder

        def work() -> str:
            printed = children.run(
                "evaluate",
                [
                    *(program("smalltalk"), "evaluate", str(folder.mixture)),
                    *("--corpus", str(folder.corpus), "--dense", str(folder.dense)),
                    *("--oracle", "--json", "--device", "cpu", "--threads", str(self._cores)),
                ],
                {"OMP_NUM_THREADS": str(self._cores)},
            )
            self._findings.evaluation = json.loads(printed)
            return f"perplexity ratio {self._findings.evaluation['ratio_suffix']:.3f}"

        self.step(Step.COMPARE, work)

    def _generate(self, children: Children) -> None:
        folder = self._folder

        def work() -> str:
            prompts = heldout_prompts(folder.corpus, self._config.sequence.prefix)
            printed = children.run(
                "generate",
                [
                    *(program("smalltalk"), "generate", str(folder.mixture), "--json"),
                    *("--tokens", str(SAMPLE_TOKENS), "--temperature", str(SAMPLE_TEMPERATURE)),
                    *("--seed", str(self._options.seed), "--device", "cpu"),
                    *(f"--prompt={prompt.text}" for prompt in prompts),
                ],
            )
            self._findings.samples = _samples(prompts, printed)
            return f"{len(prompts)} domains"

        self.step(Step.GENERATE, work)

    # ---------------------------------------------------------------------------- helpers

    @property
    def _nodes(self) -> int:
        return self._options.nodes

    def _now(self) -> float:
        return time.time() - self._started


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def _samples(prompts: list[Prompt], printed: str) -> list[dict[str, Any]]:
    said = [json.loads(line) for line in printed.splitlines() if line.strip()]
    return [
        {"domain": prompt.domain, **sample} for prompt, sample in zip(prompts, said, strict=True)
    ]


def _detail(status: dict[str, Any]) -> str:
    if status.get("phase") == Step.ROUTING:
        return f"round {status.get('round', 0)} of {status.get('rounds', 0)}"
    units = status.get("units") or {}
    total = sum(units.get(name, 0) for name in ("open", "leased", "finished"))
    return f"{units.get('finished', 0)} of {total} units done"


def _said(step: Step, status: dict[str, Any]) -> str:
    match step:
        case Step.ROUTING:
            return f"{status.get('rounds')} rounds"
        case Step.SHARDING:
            shards = status.get("shards") or {}
            if "displaced_fraction" in shards:
                return f"{shards['displaced_fraction']:.1%} not with their favourite"
        case Step.TRAINING:
            done = status.get("experts_done") or []
            return f"{sum(row.get('tokens', 0) for row in done) / 1e6:.1f}M tokens"
        case _:
            pass
    return ""


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):  # not there yet
        return None
    return value if isinstance(value, dict) else None


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
