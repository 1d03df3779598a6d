"""What the demonstration's steps share: options, folder, findings, the view and the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.demo.folder import DemoFolder
from smalltalk_fed.demo.live import DemoView
from smalltalk_fed.demo.plan import Step
from smalltalk_fed.demo.recipe import Preset


@dataclass(frozen=True)
class DemoOptions:
    """What the person asked for."""

    seed: int = 1
    experts: int = 4
    nodes: int = 4
    preset: Preset = "full"
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


@dataclass
class Stage:
    """One demonstration under way."""

    folder: DemoFolder
    findings: Findings
    view: DemoView
    started: float = field(default_factory=time.time)

    @property
    def options(self) -> DemoOptions:
        """What the person asked for."""
        return self.findings.options

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.findings.config

    def step(self, step: Step, work: Callable[[], str]) -> None:
        """Do `work` as a step; it returns what to say at its end."""
        self.view.begin(step)
        start = time.time()
        said = work()
        self.note(step.value, start, time.time())
        self.view.end(said)

    def note(self, name: str, start: float, end: float) -> None:
        """Put a span on the timeline; times are Unix seconds."""
        self.findings.timeline.append((name, start - self.started, end - self.started))


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
