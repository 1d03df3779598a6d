"""The demonstration from its first step to the findings, with no child left behind.

Rules: programs are child processes and speak mutual-TLS gRPC on loopback, as in a real run;
what is learnt of them comes from what they print (`status --json`) and write. Whatever
happens, Ctrl-C included, no child outlives this process.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from rich.console import Console

from smalltalk_fed.demo import comparing, recipe, running
from smalltalk_fed.demo.children import Children
from smalltalk_fed.demo.folder import DemoFolder
from smalltalk_fed.demo.live import DemoView
from smalltalk_fed.demo.plan import Step, make_plan
from smalltalk_fed.demo.stage import DemoOptions, Findings, Stage, available_cores


class Demo:
    """One demonstration in a claimed folder."""

    def __init__(self, folder: DemoFolder, options: DemoOptions, console: Console) -> None:
        """Raises ConfigError when the options make no valid run."""
        text = recipe.run_toml(
            options.preset, options.seed, options.experts, options.nodes, options.settings
        )
        folder.config.write_text(text, encoding="utf-8")
        config = recipe.check(folder.config)
        view = DemoView(console, make_plan(config, available_cores(), options.nodes))
        self._stage = Stage(folder, Findings(options, config, text), view)

    def run(self) -> Findings:
        """All steps but the drawing of the report.

        Raises:
            WorldError: a program failed; the message ends with the end of its log.
        """
        stage = self._stage
        with ending_politely(), Children(stage.folder.logs) as children, stage.view:
            running.prepare(stage, children)
            coordinator, nodes = running.enrol(stage, children)
            running.watch(stage, children, coordinator, nodes)
            running.collect(stage, children, coordinator, nodes)
            comparing.baseline(stage, children)
            comparing.compare(stage, children)
            comparing.generate(stage, children)
        return stage.findings

    def step(self, step: Step, work: Callable[[], str]) -> None:
        """Do `work` as a step; it returns what to say at its end."""
        self._stage.step(step, work)


@contextlib.contextmanager
def ending_politely() -> Iterator[None]:
    """A polite end by `kill` is an end like Ctrl-C: children must not outlive us."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
